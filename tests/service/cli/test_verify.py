"""`visiontower verify`: agreement is measured, disagreement is found, and each scheme's reference is its library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from rich.cells import cell_len

from encoders.contract.reference import ReferenceRow
from encoders.contract.spec import Preprocessing
from encoders.contract.values import Encoded, Grid
from service.cli.fidelity import Agreement, Served, agreement
from service.cli.main import main
from tests.support.hf_folders import SIDE, write
from tests.support.photographs import photograph
from tests.support.suites import split

HALF = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP_PROCESSOR = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
SQUASH = {"size": {"height": SIDE, "width": SIDE}}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPImageProcessor", CLIP_PROCESSOR),
    "siglip": ("SiglipImageProcessor", SQUASH),
    "dinov2": ("BitImageProcessor", CLIP_PROCESSOR),
    "vit": ("ViTImageProcessor", SQUASH),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_pct": 0.875}),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("chelsea", "coffee"):
        photograph(name).save(folder / f"{name}.jpg", "JPEG", quality=92)
    return folder


def verified(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    status = main(["verify", *argv, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "encoder_id",
    split(
        ["demo:vit", "demo:resnet", "demo:convnext", "openclip:RN50@random", "timm:resnet18@random",
         "timm:vit_tiny_patch16_224@random", "timm:swin_tiny_patch4_window7_224@random"],
        quick=["demo:vit", "demo:resnet", "timm:resnet18@random"],
    ),
)  # fmt: skip
def test_exact_pixels_in_float32_give_the_librarys_own_numbers(
    encoder_id: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = verified(capsys, encoder_id, str(photos), "--exact-pixels", "--compute-dtype", "float32")
    assert status == 0
    assert [photo["photo"] for photo in found["photos"]] == ["chelsea.jpg", "coffee.jpg"]
    for photo in found["photos"]:
        assert photo["pixels"] < 0.01
        assert min(photo["pooled"], photo["tokens"]) > 0.99999
        assert (photo["same_text"] is None) == encoder_id.startswith("timm:")


@pytest.mark.parametrize("family", split(list(PROCESSORS), quick=["clip"]))
def test_a_transformers_folder_is_held_against_transformers(
    family: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(family, tmp_path)
    name, settings = PROCESSORS[family]
    getattr(transformers, name)(**settings).save_pretrained(tmp_path)
    status, found = verified(capsys, f"hf:{tmp_path}", str(photos), "--exact-pixels", "--compute-dtype", "float32")
    assert status == 0
    for photo in found["photos"]:
        assert photo["pixels"] <= 2  # transformers resizes with torchvision, exact pixels are Pillow's
        assert min(photo["pooled"], photo["tokens"]) > 0.999
    assert found["reference"].startswith("transformers ")


def test_a_bound_that_is_missed_is_status_1_and_marked(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "demo:vit", str(photos), "--bound", "1"]) == 1
    assert "coffee.jpg <" in capsys.readouterr().out


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_compared(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes((photos / "coffee.jpg").read_bytes()[:400])
    status, found = verified(capsys, "demo:vit", str(tmp_path), str(photos))
    assert status == 1
    assert list(found["errors"]) == [str(tmp_path / "broken.jpg")]
    assert len(found["photos"]) == 2


def test_a_long_name_keeps_its_mark_and_an_odd_one_moves_no_cursor(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    coffee = (photos / "coffee.jpg").read_bytes()
    (tmp_path / f"{'東京' * 20}.jpg").write_bytes(coffee)
    (tmp_path / "red\x1b[31m\n.jpg").write_bytes(coffee)
    (tmp_path / "gone\x1b[2J.jpg").write_bytes(b"no image")
    assert main(["verify", "demo:vit", str(tmp_path), "--bound", "1"]) == 1
    told = capsys.readouterr()
    assert "東… <" in told.out
    assert r"red\x1b[31m\n.jpg <" in told.out
    assert r"gone\x1b[2J.jpg: " in told.err
    assert max(map(cell_len, told.out.splitlines())) <= 80


def test_without_a_picture_a_drawing_is_taken_and_the_table_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["verify", "demo:vit", "--text", "a red circle"]) == 0
    shown = capsys.readouterr().out
    assert "a drawing" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_vision_language_model_has_no_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("llava", tmp_path)
    assert main(["verify", f"hf:{tmp_path}"]) == 2
    assert "its language model too" in capsys.readouterr().err


@pytest.mark.parametrize("encoder_id", ["fake:vit", "hf:/nowhere@random", "demo:nothing"])
def test_an_encoder_without_a_reference_is_one_line_and_status_2(
    encoder_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", encoder_id]) == 2
    assert "Traceback" not in capsys.readouterr().err


def compared(**changes: Any) -> Agreement:
    """One picture whose two sides are equal but for `changes` of the served row."""
    pixels = np.full((4, 6, 3), 51, np.uint8)
    normalised = np.full((3, 4, 6), (51 / 255 - 0.5) / 0.5, np.float32)
    tokens = np.eye(6, dtype=np.float32)
    pooled = np.array([3.0, 4.0], np.float32)
    row = Encoded(Grid(2, 3), tokens=changes.get("tokens", tokens), pooled=changes.get("pooled", pooled))
    served = Served(changes.get("pixels", pixels), row)
    texts = np.eye(2, dtype=np.float32)
    return agreement(
        "photo",
        served,
        ReferenceRow(normalised, tokens, pooled),
        preprocessing=changes.get("preprocessing", HALF),
        served_texts=texts,
        reference_texts=texts,
    )


def test_equal_numbers_agree() -> None:
    equal = compared()
    assert equal.pixels == pytest.approx(0, abs=1e-4)
    assert (equal.pooled, equal.tokens, equal.scores) == pytest.approx((1, 1, 0))
    assert equal.same_text
    assert equal.holds(0.999999)


def test_each_difference_shows() -> None:
    swapped = np.eye(6, dtype=np.float32)[[1, 0, 2, 3, 4, 5]]
    assert compared(tokens=swapped).tokens == pytest.approx(0)
    assert compared(pixels=np.full((4, 6, 3), 54, np.uint8)).pixels == pytest.approx(3, abs=1e-3)
    other_mean = Preprocessing(mean=(0.4, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert compared(preprocessing=other_mean).pixels == pytest.approx(25.5, abs=1e-3)
    turned = compared(pooled=np.array([4.0, 3.0], np.float32))
    assert (turned.pooled, turned.scores) == pytest.approx((0.96, 0.2))
    assert turned.same_text is False
    assert not turned.holds(0.99)


def test_a_nan_is_below_every_bound() -> None:
    assert not compared(pooled=np.array([np.nan, 1.0], np.float32)).holds(-1)


def test_another_shape_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"pooled vector served have the shape \[3\], the reference's \[2\]"):
        compared(pooled=np.ones(3, np.float32))


def test_flags_may_stand_between_the_id_and_the_pictures(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = next(photos.iterdir())
    assert main(["verify", "demo:resnet", "--json", str(picture)]) == 0
    assert [each["photo"] for each in json.loads(capsys.readouterr().out)["photos"]] == [picture.name]
    with pytest.raises(SystemExit):
        main(["verify", "demo:resnet", "--jsn", str(picture)])
    assert "unrecognized arguments: --jsn" in capsys.readouterr().err
