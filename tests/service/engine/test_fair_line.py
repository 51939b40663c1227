"""Who asks for little does not stand behind who asks for much, and who asks for much has its turn."""

import random

from service.engine.fair_line import FairLine


class Item:
    def __init__(self, flow: str, cost: float) -> None:
        self.flow, self.cost = flow, cost


class Line:
    """Flows by name."""

    def __init__(self) -> None:
        self.line: FairLine[Item] = FairLine()
        self.flows: dict[str, object] = {}

    def put(self, flow: str, *costs: float) -> list[Item]:
        items = [Item(flow, cost) for cost in costs]
        for item in items:
            self.line.put(item, self.flows.setdefault(flow, object()), item.cost)
        return items

    def take(self) -> Item:
        item = next(iter(self.line))
        self.line.take(item)
        return item

    def order(self) -> str:
        return "".join(self.take().flow for _ in range(self.line.size))


def test_one_flow_is_served_in_order() -> None:
    line = Line()
    items = line.put("a", 3, 1, 2)
    assert [line.take() for _ in items] == items
    assert line.line.size == 0
    assert list(line.line) == []


def test_a_thumbnail_does_not_wait_for_another_s_64_huge_images() -> None:
    line = Line()
    line.put("a", *[100.0] * 64)
    line.take()
    line.put("b", 1)
    assert line.take().flow == "b"


def test_two_flows_of_the_same_work_take_turns() -> None:
    line = Line()
    line.put("a", 1, 1, 1)
    line.put("b", 1, 1, 1)
    assert line.order() == "ababab"


def test_a_huge_image_has_its_turn_when_the_others_have_had_as_much() -> None:
    """Though a new little one comes whenever one is taken."""
    line = Line()
    line.put("huge", 50)
    taken: list[str] = []
    while "huge" not in taken and len(taken) < 200:
        line.put(f"little {len(taken)}", 1)
        taken.append(line.take().flow)
    assert 50 <= len(taken) < 200


def test_a_flow_that_asks_for_more_later_stands_behind_what_it_asked_for_before() -> None:
    line = Line()
    line.put("a", 10, 10)
    line.take()
    line.put("b", 10, 10)
    line.put("a", 10)
    assert line.order() == "abba"


def test_who_leaves_is_skipped_and_counts_no_more() -> None:
    line = Line()
    first, second = line.put("a", 1, 1)
    assert line.line.discard(first)
    assert not line.line.discard(first)
    assert line.take() is second
    assert not line.line.discard(second)


def test_all_that_wait_are_told_in_the_order_in_which_they_are_due() -> None:
    chance = random.Random(1)
    line = Line()
    for _ in range(300):
        line.put(chance.choice("abcde"), chance.choice((1, 1, 5, 50)))
        if chance.random() < 0.3:
            line.line.discard(chance.choice(list(line.line)))
    order = list(line.line)
    assert len(order) == line.line.size
    assert [line.take() for _ in order] == order
