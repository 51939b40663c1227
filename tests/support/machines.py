"""Facts of made-up machines, for the doctor."""

from service.doctor.facts import (
    Asked,
    Card,
    Check,
    Choice,
    Facts,
    Files,
    Folder,
    Format,
    Machine,
    Nvidia,
    Package,
    Port,
    Software,
    Torch,
)

GIB = 2**30

SOFTWARE = Software(
    visiontower="0.1.0",
    python="3.12.8",
    folder="/opt/visiontower",
    system="Linux-6.8.0-x86_64-with-glibc2.39",
    packages=(
        Package("torch", "2.15.0", ">=2.11", fits=True),
        Package("numpy", "2.4.6", ">=2.2", fits=True),
        Package("pillow-heif", "1.8.0", ">=1.8", fits=True, extra="heif"),
        Package("ray", None, ">=2.60", fits=False, extra="ray"),
    ),
    plugins=("visiontower-lenet 0.1.0",),
    installed_at=1_790_000_000,
    now=1_795_000_000,
)
TORCH = Torch(
    version="2.15.0+cu132",
    cuda="13.2",
    architectures=("sm_80", "sm_90"),
    cards=(Card("NVIDIA H100 80GB HBM3", (9, 0), total=80 * GIB, free=79 * GIB),),
    why_no_card=None,
    processor="AMD EPYC 9354",
    machine="x86_64",
    vectors="AVX512",
    has_bfloat16=True,
    has_amx=False,
    threads=16,
)
FOLDER = Folder("/var/cache/weights", exists=True, is_writable=True, free=500 * GIB, held=3 * GIB)
MACHINE = Machine(memory=256 * GIB, limit=None, free=200 * GIB, swap_used=0, cores=32, allowed=16, quota=None)

HEALTHY = Facts(
    software=SOFTWARE,
    variables={"OMP_NUM_THREADS": "16"},
    asked=Asked(
        ("demo:vit",), device="auto", host="127.0.0.1", port=8000, metrics_port=None, processes=1, connections=1024
    ),
    torch=TORCH,
    nvidia=Nvidia(cards=1, driver="580.65.06", cuda=(13, 2)),
    choice=Choice("cuda:0", "bfloat16", "torch", 1, budget=63 * GIB, requests=4 * GIB, decoding_threads=15),
    machine=MACHINE,
    files=Files(soft=1024, hard=1_048_576, needed=1536),
    shared_memory=Folder("/dev/shm", exists=True, is_writable=True, free=64 * GIB),
    temporary=Folder("/tmp", exists=True, is_writable=True, free=20 * GIB),
    pictures=(
        Format("JPEG", "libjpeg-turbo 3.2.0"),
        Format("PNG", "zlib 1.3.1"),
        Format("GIF", "Pillow"),
        Format("JPEG XL", None, "jxl"),
    ),
    caches={"Hugging Face": FOLDER},
    ports=(Port("port", "127.0.0.1", 8000, None, is_taken=False),),
    checks=(Check("demo:vit", "cosines within 0.0010"),),
)
"""Nothing is wrong with it."""
