"""What the meter makes of forwards that are left at work, on a device that counts bytes."""

from collections.abc import Callable

import numpy as np

from encoders.adapters.fake import FakeEncoder, FakeMemory
from encoders.contract.errors import OutOfMemory
from encoders.contract.values import Encoded, ImageSize, Outputs, Pixels
from encoders.memory.prediction import CPU
from service.memory.budget import Budget
from service.memory.measurement import Meter
from service.scheduling.batch import Begun, Outcome
from service.scheduling.queue import ImageKey
from service.telemetry.metrics import Metrics

MODEL = "fake:vit"
KEY = ImageKey(MODEL, ImageSize(8, 8), Outputs(pooled=True))
PAYLOADS = [np.zeros((8, 8, 3), np.uint8)] * 4


class Card(FakeEncoder):
    """Takes and gives back its memory as a batch is begun; fails when one larger than `room` is waited for."""

    room = 100

    def begin(self, pixels: Pixels, outputs: Outputs) -> Encoded | Callable[[], Encoded]:
        encoded = self.encode(pixels, outputs)

        def finish() -> Encoded:
            if len(pixels) > self.room:
                raise OutOfMemory(encoder=self.spec.id)
            return encoded

        return finish


def metered(card: Card, memory: FakeMemory) -> tuple[Meter, Budget]:
    budget = Budget(limit=10**9, overhead=CPU)
    budget.learn(KEY, card.blueprint.cost(KEY.size, KEY.outputs, device="cpu"))
    return Meter(memory, budget, Metrics([MODEL], refusals=[])), budget


def wait_for(begun: Begun) -> list[Outcome]:
    assert callable(begun)
    return begun()


def test_a_reading_is_of_one_batch_though_another_runs() -> None:
    """Each takes twice what is predicted, and so no more than that is learnt of them."""
    memory = FakeMemory(10**9)
    card = Card(memory=memory, true_cost=2.0)
    meter, budget = metered(card, memory)
    begun = [meter.begin(card, KEY, PAYLOADS) for _ in range(2)]
    assert [len(wait_for(each)) for each in begun] == [4, 4]
    predicted = budget.predicted(KEY, 4)
    assert budget.excess(MODEL, predicted) == predicted


def test_an_out_of_memory_found_when_it_is_waited_for_is_recovered_from_and_remembered() -> None:
    memory = FakeMemory(10**9)
    card = Card(memory=memory)
    card.room = 2
    meter, budget = metered(card, memory)
    outcomes = wait_for(meter.begin(card, KEY, PAYLOADS))
    assert [type(outcome) for outcome in outcomes] == [Encoded] * 4
    assert budget.ceiling(KEY) == 2
