"""One process on a line, without JAX: python line_process.py PORT PROCESSES NUMBER WAIT WHAT [SILENCE].

It meets the others, prints "met", and then does what WHAT says: `wait` until it is ended, `raise` an error, `refuse`
with an `InputError`, or `end` well.
"""

import sys
import time

from jaxformer.errors import InputError
from jaxformer.parallel.cluster import Place
from jaxformer.parallel.line import Line, report


def main(port: str, processes: str, number: str, wait: str, what: str, silence: str = "25") -> None:
    place = Place(f"127.0.0.1:{port}", int(processes), int(number))
    try:
        line = Line.open(place, {"code": "one"}, float(wait), float(silence))
    except InputError as error:
        report(place, str(error))
        sys.exit(2)
    print("met", flush=True)
    if what == "wait":
        time.sleep(60)
    elif what == "raise":
        line.fail("RuntimeError: the reason", 1)
    elif what == "refuse":
        line.fail("the field is wrong", 2)
    line.done()
    time.sleep(1)  # The others see the end of the connection before they end.


if __name__ == "__main__":
    main(*sys.argv[1:])
