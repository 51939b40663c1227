"""What becomes of the settings of an engine that has a part of the card, given as a number from 0 to 1."""

import json
import sys

from service.cluster.share import Share
from service.settings import Settings

settings = Share(1, float(sys.argv[1])).settings(Settings())
import torch  # noqa: E402  # not before

card = torch.cuda.mem_get_info()[1]
print(json.dumps({"device": settings.device, "vram_budget": settings.vram_budget, "card": card}))
