"""Predicts the memory of a forward on a device: tensors, and all that comes on top. Pure arithmetic, in bytes.

Three measures, each at least the one before: `requested` is what tensors ask for, `allocated` what the allocator gives
them, `reserved` what it holds of the card.
"""

from dataclasses import dataclass

from encoders.contract.cost import Cost

MIB = 2**20


@dataclass(frozen=True)
class Overhead:
    """What a device takes besides tensors.

    context: once a process, beside the weights and forwards: by the driver, the libraries, and for CUDA graphs.
    graphs: of the context, what is set aside for CUDA graphs, and not taken yet when the process starts.
    workspace: of a BLAS library, for the length of a matrix product.
    page: what the allocator takes of the card at a time.
    uploads: batches whose pixels, as uint8, lie beside a forward of its size where one is begun behind another: its own
        from the moment it is begun, and until they have been read, those of the one before. In no measure below.
    """

    context: int = 0
    graphs: int = 0
    workspace: int = 0
    page: int = 0
    uploads: int = 0

    def allocated(self, cost: Cost, batch: int) -> int:
        """Bytes that the allocator gives a forward at its highest point, weights apart."""
        return max(cost.requested(batch), cost.during_products(batch) + self.workspace)

    def reserved(self, cost: Cost, batch: int) -> int:
        """Bytes that the card must have free for a forward.

        Blocks do not fill pages to the brim: a page and a twelfth are lost, five pages at most. That is an allowance,
        found by trying what runs with torch's allocator under ALLOCATOR: of five encoders at two sizes with 64 to 1500
        MiB free, the batch planned ran in 89 cases of 90, and with 512 MiB or more it was 0.95 of the largest that ran
        on average, 0.90 at worst (tests/cudastub/test_cudastub_memory.py). What it gets wrong, the server halves and
        remembers.
        """
        return self.in_pages(self.allocated(cost, batch))

    def in_pages(self, allocated: int) -> int:
        """Bytes of the card that hold so many at the highest point of a forward."""
        return allocated + min(_LOST_PAGES * self.page, allocated // 12 + self.page if self.page else 0)

    def largest_batch(self, cost: Cost, free: int) -> int:
        """The largest batch whose `reserved` is at most `free`; 0 if not even one item fits."""
        dozens, rest = divmod(free - self.page, 13)  # what a page and a twelfth of it leave
        allocated = max(free - _LOST_PAGES * self.page, 12 * dozens + min(rest, 11)) if self.page else free
        batch = min(cost.requested.largest(allocated), cost.during_products.largest(allocated - self.workspace))
        return max(batch, 0)


_LOST_PAGES = 5


CPU = Overhead()
"""Nothing: kernels on CPUs take their scratch space from the same tensors, or too little to count."""


ALLOCATOR = "expandable_segments:True,large_segment_size_mb:12"
"""PYTORCH_ALLOC_CONF as CUDA plans count on it: segments that grow, by pages of 12 MiB (by default 20; it must be over
10), so that little is lost to blocks that do not fit between others."""


CUDA = Overhead(context=512 * MIB, workspace=32 * MIB, page=12 * MIB, uploads=2)
"""For a card that is not at hand. The workspace is the largest there is; the context is an allowance."""


def overhead_of(device: str) -> Overhead:
    """For a device that is not at hand: `cpu` or `cuda`."""
    return CPU if device == "cpu" else CUDA


@dataclass(frozen=True)
class Prediction:
    """Bytes of one forward of `batch` items, split so that they add up, and its work.

    activation_bytes: alive at the highest point beyond inputs and outputs. overhead_bytes: context, workspace, pages.
    flops, tokens: of all items.
    """

    batch: int
    weights_bytes: int
    input_bytes: int
    activation_bytes: int
    output_bytes: int
    overhead_bytes: int
    tokens: int
    flops: int

    @property
    def io_bytes(self) -> int:
        """Inputs and outputs."""
        return self.input_bytes + self.output_bytes

    @property
    def total_bytes(self) -> int:
        """What the card must have for it."""
        return self.weights_bytes + self.io_bytes + self.activation_bytes + self.overhead_bytes


def predict(cost: Cost, batch: int, *, weights_bytes: int, overhead: Overhead) -> Prediction:
    """The prediction for one encoder by itself on a device."""
    io_bytes = batch * (cost.input_bytes + cost.output_bytes)
    requested = cost.requested(batch)
    return Prediction(
        batch=batch,
        weights_bytes=weights_bytes,
        input_bytes=batch * cost.input_bytes,
        activation_bytes=requested - io_bytes,
        output_bytes=batch * cost.output_bytes,
        overhead_bytes=overhead.context + overhead.reserved(cost, batch) - requested,
        tokens=batch * cost.tokens,
        flops=batch * cost.flops,
    )
