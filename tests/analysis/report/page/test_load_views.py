"""Views of loads and devices in a browser: drawn, every control driven, numbers of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.report.page.browser import Opened
from tests.analysis.report.page.comparing import same
from tests.analysis.report.page.traces import LAYERS
from tests.analysis.report.page.views import choose, colours, numbers, point, read, shown

Open = Callable[..., Opened]
LAYER, WINDOW = "Layer", "Idle for at least W ="
VIEWS = {
    "sorted-load": [LAYER, "Scale"],
    "imbalance": ["Index"],
    "decomposition": [],
    "variance": [],
    "coverage": [LAYER],
    "burstiness": [LAYER],
    "longest-idle": [WINDOW],
    "idle-windows": [WINDOW],
    "idle-experts": [WINDOW],
    "device-layers": ["Devices G"],
    "devices": ["Definition"],
    "placement": ["Devices G"],
}
DRAWN_ONLY = {("sorted-load", "Scale"), ("longest-idle", WINDOW), ("devices", "Definition")}
"""Controls that change the drawing; the table has all numbers."""
NAMES = [spec.layer for spec in LAYERS]
SIZES = np.array([spec.num_experts for spec in LAYERS])
TOP_K = np.array([spec.top_k for spec in LAYERS])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_drawn(open_page: Open, plain: Path, scheme: str) -> None:
    page = open_page(plain, color_scheme=scheme)
    page.draw_all()
    page.page.wait_for_timeout(300)
    for view in VIEWS:
        assert page.page.locator(f"#{view} .absent").count() == 0
        assert colours(page, view) > 10, view


def test_every_control_changes_what_is_shown(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    page.draw_all()
    for view, labels in VIEWS.items():
        card = page.page.locator(f"#{view}")
        controls = card.locator(".controls label")
        assert controls.all_inner_texts() == labels
        for label in labels:
            box = card.get_by_label(label, exact=True)
            values = (
                [box.get_attribute("min"), box.get_attribute("max")]
                if box.get_attribute("type") == "range"
                else box.locator("option").evaluate_all("all => all.map(one => one.value)")
            )
            tables, pictures = set(), set()
            for value in values:
                (box.fill if box.get_attribute("type") else box.select_option)(str(value))
                page.wait()
                tables.add(page.download(view))
                pictures.add(card.locator(".plot").first.screenshot())
            assert len(tables) == (1 if (view, label) in DRAWN_ONLY else len(values))
            assert len(pictures) > 1


def test_sorted_loads_are_those_of_the_table(open_page: Open, plain: Path) -> None:
    page, experts = open_page(plain), read(plain, "experts")
    everything = numbers(page, "sorted-load")
    assert len(everything) == SIZES.sum()
    for place, layer in enumerate(NAMES):
        choose(page, "sorted-load", "Layer", str(place))
        found = numbers(page, "sorted-load")
        wanted = experts[experts["layer"] == layer].sort_values(
            ["relative_load", "expert"], kind="stable"
        )
        for name in ("expert", "relative_load", "ci_low", "ci_high"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-9)
        assert found["rank"].tolist() == list(range(1, len(wanted) + 1))
        assert everything[everything["layer"] == layer].equals(
            found.set_axis(everything.index[everything["layer"] == layer])
        )


def test_band_is_where_fair_routing_lies(open_page: Open, plain: Path) -> None:
    """With one expert per token the counts of T_eff fair tokens are multinomial."""
    page, layers = open_page(plain), read(plain, "layers")
    choose(page, "sorted-load", "Layer", "2")
    found = numbers(page, "sorted-load")
    tokens = round(layers["tokens_effective"][2])
    drawn = np.random.default_rng(3).multinomial(tokens, np.full(16, 1 / 16), 20_000)
    load = np.sort(drawn, axis=1) * 16 / tokens
    for name, part in (("chance_low", 0.025), ("chance", 0.5), ("chance_high", 0.975)):
        wanted = np.quantile(load, part, axis=0)
        # Counts are whole numbers and slightly skewed; the band is of normal ones.
        np.testing.assert_allclose(found[name], wanted, atol=1.2 * 16 / tokens)


def test_click_on_a_sorted_load_selects_the_expert(open_page: Open, plain: Path) -> None:
    page, experts = open_page(plain), read(plain, "experts")
    page.draw_all()
    choose(page, "sorted-load", "Layer", "1")
    mine = experts[experts["layer"] == 7].sort_values(["relative_load", "expert"])
    row = mine.iloc[-2]
    page.page.mouse.click(*point(page, "sorted-load", len(mine) - 1, row["relative_load"]))
    page.wait()
    assert (page.state()["layer"], page.state()["expert"]) == (1, row["expert"])
    assert f"Layer 7, expert {row['expert']}" in page.text(".bar .selected")
    # Its layer is now the one that views of one layer show.
    page.page.evaluate("MoeProbe.page.select(0, 2)")
    page.wait()
    assert set(numbers(page, "coverage")["layer"]) == {3}
    page.page.mouse.move(*point(page, "sorted-load", 2, 1))
    assert "95% interval" in page.text("#sorted-load .tip")


def test_indices_stand_beside_chance_and_noise(open_page: Open, plain: Path) -> None:
    page, layers = open_page(plain), read(plain, "layers")
    effective = layers["tokens_effective"].round()
    cv = np.sqrt((SIZES - TOP_K) / (TOP_K * effective))
    kl = cv**2 / 2
    closed = {
        "cv": cv,
        "gini": cv * np.sqrt((SIZES - 1) / SIZES / np.pi),
        "total_variation": cv / np.sqrt(2 * np.pi),
        "kl_uniform": kl,
        "effective_experts": SIZES * np.exp(-kl),
        "normalized_entropy": 1 - kl / np.log(SIZES),
    }
    for name in ("max_vio", *closed):
        choose(page, "imbalance", "Index", name)
        found = numbers(page, "imbalance")
        stored, over = ("entropy", np.log(SIZES)) if name == "normalized_entropy" else (name, 1)
        for suffix in ("", "_null", "_noise"):
            wanted = layers[stored + suffix] / over
            np.testing.assert_allclose(found[name + suffix], wanted, rtol=1e-5)
        if name in closed:
            np.testing.assert_allclose(found[f"{name}_null_effective"], closed[name], rtol=1e-4)
        else:
            assert (found["max_vio_null_effective"] > found["max_vio_null"]).all()


def test_parts_of_imbalance_add_up_to_that_inside_subjects(open_page: Open, plain: Path) -> None:
    page, subjects = open_page(plain), read(plain, "subjects")
    found = numbers(page, "decomposition").set_index("layer")
    for layer, size in zip(NAMES, SIZES, strict=True):
        counts = subjects[subjects["layer"] == layer].pivot(
            index="subject", columns="expert", values="count"
        )
        share = counts.to_numpy() / counts.to_numpy().sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            within = np.nansum(share * np.log(size * share), axis=1)
            pooled = counts.sum().to_numpy() / counts.to_numpy().sum()
            overall = np.nansum(pooled * np.log(size * pooled))
        inside = np.average(within, weights=counts.sum(axis=1))
        row = found.loc[layer]
        np.testing.assert_allclose(row["mean_subject_kl"], inside, rtol=1e-4)
        np.testing.assert_allclose(row["pooled_kl"], overall, rtol=1e-4)
        np.testing.assert_allclose(row["information_nats"], inside - overall, rtol=1e-3)
    table = read(plain, "specialization").set_index("layer")
    np.testing.assert_allclose(found["pooled_kl_null"], table["pooled_kl_null"], rtol=1e-5)
    noise = table["plug_in_bias_bits"] * np.log(2)
    np.testing.assert_allclose(found["information_nats_null"], noise, rtol=1e-5)
    shares = found["information_nats"] / (found["pooled_kl"] + found["information_nats"])
    np.testing.assert_allclose(found["specialised_share"], shares, rtol=1e-3)


def test_causes_are_quantiles_over_experts(open_page: Open, plain: Path) -> None:
    page = open_page(plain)
    wanted = read(plain, "variance").groupby("layer")[["subject", "area", "length"]]
    found = numbers(page, "variance").set_index("layer")
    for suffix, part in (("_low", 0.05), ("", 0.5), ("_high", 0.95)):
        mine = found[[f"{name}{suffix}" for name in ("subject", "area", "length")]]
        np.testing.assert_allclose(mine, wanted.quantile(part), rtol=1e-4, atol=1e-6)


def test_coverage_is_that_of_the_table(open_page: Open, plain: Path) -> None:
    page, wanted = open_page(plain), read(plain, "coverage")
    curves = ["tokens", "seen", "own", "fair"]
    shares = wanted.assign(size=wanted["layer"].map(dict(zip(NAMES, SIZES, strict=True))))
    shares["seen"] /= shares["size"]
    found = numbers(page, "coverage")
    by_x = shares.groupby("tokens")["seen"]
    np.testing.assert_allclose(found["seen_share"], by_x.median(), rtol=1e-5)
    np.testing.assert_allclose(found["seen_share_low"], by_x.quantile(0.05), rtol=1e-5)
    for place, layer in enumerate(NAMES):
        choose(page, "coverage", "Layer", str(place))
        mine = wanted[wanted["layer"] == layer]
        np.testing.assert_allclose(numbers(page, "coverage")[curves], mine[curves], rtol=1e-5)


def test_devices_are_groups_of_experts(open_page: Open, plain: Path) -> None:
    page, experts, devices = open_page(plain), read(plain, "experts"), read(plain, "devices")
    assert devices["devices"].tolist() == [2, 4]
    for _, row in devices.iterrows():
        size = int(row["devices"])
        choose(page, "device-layers", "Devices G", str(size))
        found = numbers(page, "device-layers")
        for layer, mine in zip(NAMES, found.itertuples(), strict=True):
            counts = experts[experts["layer"] == layer]["count"].to_numpy()
            loads = counts.reshape(size, -1).sum(axis=1)
            assert (mine.max_load, mine.busiest_device) == (loads.max(), loads.argmax())
            assert mine.first_expert == loads.argmax() * len(counts) / size
        np.testing.assert_allclose(found["mean_max"].mean(), row["vllm_avg"], rtol=1e-5)
        assert (found["mean_max_null_effective"] < found["mean_max_null"]).all()
    table = shown(page, "devices").astype(float)
    columns = [name for name in devices if name not in ("counting_rule", "token_order")]
    np.testing.assert_allclose(table[columns], devices[columns], rtol=1e-5)
    assert table.filter(like="_null").notna().all(axis=None)


def test_placements_are_those_of_the_table(open_page: Open, plain: Path) -> None:
    page, table = open_page(plain), read(plain, "placement").fillna("")
    columns = ["devices", "placed_for", "subject"]
    table["placed_for"] = table["fit_subject"].where(table["fit"] == "subject", table["fit"])
    table["subject"] = table["subject"].replace("", "all text")
    for size in (2, 4):
        choose(page, "placement", "Devices G", str(size))
        found = shown(page, "placement")
        same(found, table[table["devices"] == size], columns, ["balancedness"], rtol=1e-4)
    page.draw_all()
    values = table[table["devices"] == 4].set_index(["placed_for", "subject"])["balancedness"]
    own = np.mean([values[name, name] for name in ("anatomy", "law", "logic")])
    said = page.text("#placement .status")
    assert said.startswith("4 devices, mean over subjects: contiguous ")
    assert f"for itself {own:.3g}. All text" in said
    assert f"the other half of the documents {values['other half', 'all text']:.3g}" in said
    page.page.mouse.click(*point(page, "placement", 1, 4))
    page.wait()
    assert page.state()["subject"] == 1
