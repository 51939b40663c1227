"""Access keys of the real service, as the client meets them."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.support.keys import file_of, secret_of
from tests.support.serving import app_of, noise
from visiontower_client import AsyncClient, LimitExceeded, NotAllowed, Overloaded

pytestmark = pytest.mark.anyio


async def test_what_a_key_may_not_is_an_exception_with_the_facts(tmp_path: Path) -> None:
    path = file_of(
        tmp_path / "keys.toml",
        small={"images_per_day": 2, "images_in_flight": 3},
        other={"models": ["fake:other"]},
    )
    app = app_of(keys_file=path)

    def client(key: str | None) -> AsyncClient:
        return AsyncClient("http://service", api_key=key, transport=httpx.ASGITransport(app))

    async with app.router.lifespan_context(app):
        for key in (None, "vt_wrong"):
            async with client(key) as stranger:
                with pytest.raises(NotAllowed, match="asks for an access key") as refused:
                    await stranger.embed(noise(1))
                assert (refused.value.status, refused.value.slug) == (401, "invalid-key")
        async with client(secret_of("other")) as other:
            with pytest.raises(NotAllowed, match="may not use 'fake:vit'") as refused:
                await other.embed(noise(1))
            assert refused.value.facts["allowed"] == ["fake:other"]
        async with client(secret_of("small")) as small:
            with pytest.raises(LimitExceeded, match="may have 2 a day"):
                await small.embed([noise(seed) for seed in range(3)])
            assert (await small.embed([noise(1), noise(2)])).shape == (2, 6)
            async with asyncio.timeout(5):  # it is not tried again: the day lasts longer than a client's patience
                with pytest.raises(Overloaded, match="has 0 left") as used_up:
                    await small.embed(noise(3))
        assert used_up.value.slug == "day-used-up"
        assert used_up.value.retry_after_s == used_up.value.facts["retry_after_s"]
