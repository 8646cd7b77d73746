"""The job in pandas: python benchmarks/data/with_pandas.py INPUT OUTPUT (see job.py)."""

import pandas as pd
from job import CATEGORIES, HIGH, LOW, NUMBERS, paths

source, target = paths()
rows = pd.read_csv(source, engine="pyarrow") if source.suffix == ".csv" else pd.read_parquet(source)
rows = rows.drop_duplicates()
bounds = rows[list(NUMBERS)].quantile([LOW, 0.5, HIGH])
for name in NUMBERS:
    low, median, high = bounds[name]
    values = rows[name].astype("float64").fillna(median).clip(low, high)
    rows[name] = (values - values.mean()) / values.std(ddof=0)
for name in CATEGORIES:
    rows[name] = rows[name].fillna(rows[name].mode()[0])
rows = pd.get_dummies(rows, columns=list(CATEGORIES))
rows.to_parquet(target)
