"""The table in the package, tables of one's own, and what an hour costs by them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lepton_ray.core.errors import SpecError
from lepton_ray.cost.bounds import Bounds
from lepton_ray.cost.prices import load_table, usd_per_hour
from lepton_ray.spec import parse_spec
from lepton_ray.spec.cost import CostSpec

OWN = """
date: "2026-02"
currency: USD
providers:
  basement:
    region: left shelf
    source: the invoice
    instances:
      box: {on_demand: 0.5}
      gpu-box: {on_demand: 2, spot: 0.75, gpus: 1}
"""


def cost_of(**settings: Any) -> CostSpec:
    return CostSpec.model_validate(settings)


def own_table(folder: Path, text: str = OWN) -> str:
    (folder / "prices.yaml").write_text(text)
    return str(folder / "prices.yaml")


def test_the_built_in_table_has_three_providers_and_says_how_old_it_is() -> None:
    table = load_table(None)
    assert set(table.providers) == {"aws", "gcp", "azure"}
    assert table.date
    assert all(one.region and one.source and one.spot_fraction for one in table.providers.values())


def test_sizes_of_a_family_cost_in_proportion() -> None:
    """As the providers price them: a wrong digit would stand out."""
    for provider in load_table(None).providers.values():
        families: dict[tuple[str, float], set[float]] = {}
        for name, one in provider.instances.items():
            if one.cpus and not one.gpus:
                family = name.partition(".")[0] if "." in name else name.rstrip("0123456789s_v").rstrip("0123456789")
                family += name.rpartition("_")[2] if "_" in name else ""
                families.setdefault((family, (one.memory_gib or 0) / one.cpus), set()).add(one.on_demand / one.cpus)
        for family, prices in families.items():
            assert max(prices) == pytest.approx(min(prices), rel=2e-3) or family[0] == "t3", family


def test_a_head_and_its_workers(tmp_path: Path) -> None:
    own = cost_of(prices=own_table(tmp_path), provider="basement", head="box", worker="gpu-box")
    table = load_table(own.prices)
    assert usd_per_hour(own, table, 3) == Bounds.exactly(6.5)
    spot = own.model_copy(update={"spot": True})
    assert usd_per_hour(spot, table, 3) == Bounds.exactly(0.5 + 3 * 0.75)
    assert usd_per_hour(cost_of(usd_per_hour=4.0), None, 9) == Bounds.exactly(4.0)
    assert usd_per_hour(cost_of(budget_h=1.0), None, 1) is None


def test_machines_whose_type_nobody_names_cost_what_the_head_does() -> None:
    """They are there, and counted: for nothing, a budget would never be spent."""
    assert usd_per_hour(cost_of(provider="aws", head="m5.large"), load_table(None), 4) == Bounds.exactly(5 * 0.096)
    assert usd_per_hour(cost_of(provider="aws", head="m5.large"), load_table(None), 0) == Bounds.exactly(0.096)


def test_a_spot_price_that_nobody_gives_is_bounds() -> None:
    table = load_table(None)
    found = usd_per_hour(cost_of(provider="gcp", head="e2-standard-2", worker="n1-standard-4", spot=True), table, 2)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.067 + 0.09 * 0.38, 0.067 + 0.4 * 0.38))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"provider": "aws", "head": "m5.larg"},
            r"cost\.head must be in the table of prices \(t3\.medium, .*got 'm5\.larg'",
        ),
        ({"provider": "aws", "head": "m5.large", "worker": "x"}, r"cost\.worker must be in the table"),
        (
            {"provider": "ows", "head": "m5.large"},
            r"cost\.provider must be in the table of prices \(aws, gcp, azure\), got 'ows'",
        ),
    ],
)
def test_what_the_table_lacks_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        usd_per_hour(cost_of(**settings), load_table(None), 1)


def test_a_spot_price_must_be_known(tmp_path: Path) -> None:
    own = cost_of(prices=own_table(tmp_path), provider="basement", head="box", worker="box", spot=True)
    with pytest.raises(SpecError, match=r"cost\.spot must have a price in the table, got none for box of basement"):
        usd_per_hour(own, load_table(own.prices), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.replace("USD", "EUR"), "currency: Input should be 'USD'"),
        (OWN.replace("0.5", "-0.5"), "providers.basement.instances.box.on_demand"),
        (OWN.replace("region: left shelf", "regio: left shelf"), "region"),
        (OWN + "currency: USD\n", "currency"),
        ("[1, 2]", "the table"),
        ("a: [", "YAML"),
    ],
)
def test_a_table_that_is_none_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_table(own_table(tmp_path, text))


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cost\.prices must be a readable file, got '.*none\.yaml'"):
        load_table(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget_usd": 5.0}, "budget_usd must be given with prices"),
        ({"provider": "aws"}, "head must be given with provider"),
        ({"head": "m5.large"}, "provider must be given with head"),
        ({"provider": "aws", "head": "m5.large", "spot": True}, "worker must be given with spot"),
        ({"provider": "aws", "head": "m5.large", "num_workers": 2}, "worker must be given with num_workers"),
        ({"usd_per_hour": 1.0, "provider": "aws"}, "provider must be left out with usd_per_hour"),
        ({"usd_per_hour": 1.0, "spot": True}, "spot must be left out with usd_per_hour"),
        ({"worker": "m5.large"}, "head must be given with worker"),
        ({"budget_h": 0.0}, "budget_h"),
        ({"budget": 1.0}, "budget"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        cost_of(**settings)


def test_a_spec_says_where_its_section_is_wrong() -> None:
    text = "name: n\ndata: {source: {kind: csv, uri: x.csv}, columns: {a: number}}\ncost:\n  budget_usd: 5\n"
    with pytest.raises(SpecError, match=r"line [34]: cost.*budget_usd must be given with prices"):
        parse_spec(text)
