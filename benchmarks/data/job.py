"""The job that every contender of the data benchmark does, each as one fresh process: ``python CONTENDER INPUT OUTPUT``.

INPUT is ``NAME.csv`` or ``NAME.parquet`` (see ``generate.py``), OUTPUT a Parquet file, or a folder of them:

1. Read all rows. A missing value is null in Parquet and an empty cell in CSV.
2. Drop duplicates: of the rows that are equal in every column, missing equal to missing, one stays. The statistics below
   are those of the rows that stay.
3. Numbers: with q(p) the p-quantile of the column's values that are not missing, linear between the two values nearest to
   p * (n - 1), replace missing by q(0.5), clip to q(0.01)..q(0.99), subtract the mean and divide by the population standard
   deviation (ddof 0), both taken after replacing and clipping. At least float32.
4. Categories: replace missing by the most frequent value, then one column for each value, 1 where it is and 0 elsewhere; or one list
   column with as many places, in the order of the values.
5. Texts stay as they are.
6. Write Parquet, compressed or not, whatever takes the library the least time. The order of the rows does not matter.

``check.py`` compares the results; ``id`` names a row, and only the check may use that.
"""

import sys
from pathlib import Path

NUMBERS = ("age", "income", "balance", "usage", "latency", "visits", "rating")
CATEGORIES = {
    "region": ("abroad", "east", "islands", "north", "south", "west"),
    "plan": ("basic", "business", "family", "free"),
    "channel": (
        *("fair", "friend", "newsletter", "partner", "podcast", "poster", "radio", "shop", "television", "web search"),
    ),
}
"""Their values, sorted; contenders must find them."""
TEXTS = ("id", "note")
COLUMNS = ("id", *NUMBERS, *CATEGORIES, "note")
LOW, HIGH = 0.01, 0.99


def paths() -> tuple[Path, Path]:
    """Return INPUT and OUTPUT of the command line."""
    source, target = sys.argv[1:3]
    return Path(source), Path(target)
