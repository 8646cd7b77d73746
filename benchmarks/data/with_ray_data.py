"""The job in Ray Data with its own parts: python benchmarks/data/with_ray_data.py INPUT OUTPUT [lazy] (see job.py).

Readers, groupby, preprocessors in a Chain and writer as Ray's documentation shows them, and these aids that it does not
show, each to Ray's advantage:

- Ray Data has no ``drop_duplicates``: rows are grouped by their hash into few groups, and pandas drops them in each. One
  group for each row, as by ``groupby(columns).map_groups``, takes minutes.
- SimpleImputer has no median, and Ray has no quantile clip. The ``Quantile`` aggregator gathers Python lists of 40 million
  numbers; instead the number columns go to pandas in the driver.
- The rows are materialized once the duplicates are gone. With ``lazy`` they are not: each fit in the Chain, and the writing,
  then runs all steps from the file again, which is what the documentation's code does.
"""

import sys

import pandas as pd
import pyarrow.csv
import ray
from job import CATEGORIES, HIGH, LOW, NUMBERS, paths
from ray.data.preprocessors import Chain, OneHotEncoder, SimpleImputer, StandardScaler

NUM_GROUPS = 16


def add_group(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the group of each row: equal rows have the same. Blocks with and without missing values must hash alike."""
    rows = rows.astype(dict.fromkeys(NUMBERS, "float64"))
    return rows.assign(group=pd.util.hash_pandas_object(rows, index=False) % NUM_GROUPS)


def drop_duplicates(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the distinct rows of a group."""
    return rows.drop_duplicates().drop(columns="group")


source, target = paths()
ray.init(address="local", log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
if source.suffix == ".csv":
    # Without this option a missing text is read as "", which nothing imputes.
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    rows = ray.data.read_csv(str(source), convert_options=options)
else:
    rows = ray.data.read_parquet(str(source))
rows = (
    rows.map_batches(add_group, batch_format="pandas")
    .groupby("group")
    .map_groups(drop_duplicates, batch_format="pandas")
)
if sys.argv[3:] != ["lazy"]:
    rows = rows.materialize()
bounds = rows.select_columns(list(NUMBERS)).to_pandas().quantile([LOW, 0.5, HIGH]).to_dict("list")


def impute_and_clip(rows: pd.DataFrame) -> pd.DataFrame:
    """Impute by the median and clip at the quantiles."""
    for name, (low, median, high) in bounds.items():
        rows[name] = rows[name].fillna(median).clip(low, high)
    return rows


chain = Chain(
    SimpleImputer(list(CATEGORIES), strategy="most_frequent"),
    StandardScaler(list(NUMBERS)),
    OneHotEncoder(list(CATEGORIES)),
)
chain.fit_transform(rows.map_batches(impute_and_clip, batch_format="pandas")).write_parquet(str(target))
