"""The doctor on the stub card. Prints the facts and the findings as JSON.

Usage: doctor.py [encoders], which runs the self-test too.
"""

import json
import sys
from dataclasses import asdict

from service.doctor.examination import examine
from service.doctor.findings import findings

if __name__ == "__main__":
    facts = examine(runs_encoders="encoders" in sys.argv)
    print(json.dumps({**asdict(facts), "findings": [asdict(each) for each in findings(facts)]}))
