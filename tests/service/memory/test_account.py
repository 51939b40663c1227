import threading
from itertools import count

import pytest

from service.errors import HostMemoryFull, OverHostMemory
from service.memory.account import Account, automatic_limit


def test_bytes_are_given_back_by_leaving_the_stage() -> None:
    account = Account(1000)
    with account.hold("body", 600), account.hold("image", 100):
        assert account.held == {"body": 600, "image": 100, "input": 0, "text": 0, "answer": 0}
    assert not any(account.held.values())


def test_one_request_may_take_all_when_nobody_holds_anything() -> None:
    account = Account(1000)
    with account.hold("body", 600) as body:
        body.grow(400)
        assert body.nbytes == 1000


def test_more_than_the_limit_is_refused_for_good() -> None:
    account = Account(1000)
    with account.hold("body", 600) as body:
        with pytest.raises(OverHostMemory) as refused:
            body.grow(401)
        assert (refused.value.facts["actual"], refused.value.facts["limit"]) == (1001, 1000)
        assert body.nbytes == 600


def test_whoever_takes_much_leaves_as_much_for_others() -> None:
    account = Account(6400)
    account.hold("body", 3200)
    with pytest.raises(HostMemoryFull) as full:
        account.hold("body", 1601)
    assert full.value.facts["free"] == 3200
    account.hold("body", 1600)


def test_whoever_comes_in_pieces_gets_no_more_than_who_comes_at_once() -> None:
    account = Account(6400)
    account.hold("body", 3200)
    pieces = account.hold("body")
    for _ in range(16):
        pieces.grow(100)
    with pytest.raises(HostMemoryFull):
        pieces.grow(100)


def taken_until_full(account: Account, nbytes: int) -> int:
    for taken in count():
        try:
            account.hold("body", nbytes)
        except HostMemoryFull:
            return taken
    raise AssertionError


def test_the_small_get_what_the_large_left() -> None:
    account = Account(6400)
    assert taken_until_full(account, 500) == 11
    assert taken_until_full(account, 100) == 9


def test_a_refused_taking_holds_nothing() -> None:
    account = Account(1000)
    account.hold("text", 900)
    with pytest.raises(HostMemoryFull):
        account.hold("image", 200)
    assert account.held["image"] == 0


def test_the_automatic_limit_is_some_memory() -> None:
    assert 256 * 2**20 <= automatic_limit() <= 4 * 2**30


def test_the_first_picture_may_have_what_is_free_but_for_an_eighth_and_the_next_leaves_as_much() -> None:
    account = Account(800)
    account.hold("body", 100)
    with pytest.raises(HostMemoryFull):
        account.hold("image", 601)
    with account.hold("image", 600):
        with pytest.raises(HostMemoryFull):
            account.hold("image", 51)
        account.hold("image", 50)
    with pytest.raises(OverHostMemory):
        account.hold("image", 701)
    assert (account.most("image"), account.most("body")) == (700, 800)


def test_who_is_short_is_notified_when_bytes_are_given_back() -> None:
    account = Account(100)
    hold = account.hold("body", 100)
    short = threading.Condition()
    woken: list[bool] = []

    def wait() -> None:
        with short:
            account.short.add(short)
            ready.set()
            woken.append(short.wait(30))

    ready = threading.Event()
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert ready.wait(30)
    hold.release()
    waiting.join(30)
    assert woken == [True]
    assert not account.short


def test_what_a_request_holds_already_is_not_others() -> None:
    account = Account(1000)
    body = account.hold("body", 400)
    with pytest.raises(HostMemoryFull):
        account.hold("answer", 500)
    assert account.hold("answer", 500, beside=body.nbytes).nbytes == 500
    with pytest.raises(OverHostMemory):
        account.hold("answer", 700, beside=body.nbytes)


def test_a_hold_may_shrink() -> None:
    account = Account(1000)
    hold = account.hold("body", 400)
    hold.shrink(100)
    hold.shrink(300)
    assert (hold.nbytes, account.held["body"]) == (100, 100)
    hold.release()
    assert account.held["body"] == 0
