"""``crypto-qlib features``: build the features, and say what they are."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from crypto_qlib.cli.asked import asked, out
from crypto_qlib.cli.steps import run_step
from crypto_qlib.core.clock import FRAME_NS
from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.schema import Settings

if TYPE_CHECKING:
    from crypto_qlib.feature_engineering.feature_frame import FeatureSpec

_app = typer.Typer(help="Build the features, and say what they are.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add this group to ``root``."""
    root.add_typer(_app, name="features")


@_app.command()
def build(context: typer.Context) -> None:
    """Build the Qlib store and the features of every bar."""
    run_step(context, lambda p: p.features())


@_app.command("list")
def list_features(
    context: typer.Context,
    group: Annotated[str, typer.Option("--group", help="Only this feature set.", show_default="all chosen")] = "",
    every: Annotated[bool, typer.Option("--all", help="Every set there is, not only those of features.sets.")] = False,
) -> None:
    """List the features: name, set, bars looked back on, unit, formula, and from when each is known."""
    specs = _specs(asked(context).settings(), every=every or bool(group))
    if group:
        specs = _of_set(specs, group)
    widths = [max(len(getattr(s, column)) for s in specs) for column in ("name", "group", "unit")]
    console = out()
    for s in specs:
        known = "" if s.known_at == "close of bar t" else f"  [known at {s.known_at}]"
        line = f"{s.name:<{widths[0]}}  {s.group:<{widths[1]}}  {s.lookback_bars:>5}  {s.unit:<{widths[2]}}  {s.formula}{known}"
        console.print(escape(line))
    console.print(f"{len(specs)} features")


@_app.command()
def describe(context: typer.Context, name: Annotated[str, typer.Argument(help="Name of a feature, e.g. RSI14.")]) -> None:
    """Say what one feature is: formula, unit, look-back, from when it is known, what it needs."""
    from crypto_qlib.feature_engineering import catalogue_page

    specs = {s.name: s for s in _specs(asked(context).settings(), every=True)}
    found = specs.get(name.upper())
    if found is None:
        near = get_close_matches(name.upper(), specs, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `crypto-qlib features list --all`"
        raise UserError(f"there is no feature {name}", hint)
    out().print(escape(catalogue_page.describe(found)))


@_app.command()
def ic(
    context: typer.Context,
    segment: Annotated[str, typer.Option("--segment", help="train, valid or test.")] = "test",
    group: Annotated[str, typer.Option("--group", help="Only this feature set.", show_default="all built")] = "",
) -> None:
    """Measure each feature's rank correlation with what came after, with errors and a correction for their number."""
    run_step(context, lambda p: _study().measured(p.feature_study(), segment, group))


@_app.command()
def select(
    context: typer.Context,
    name: Annotated[str, typer.Option("--name", help="Name of the selection; each choice is a new version.")] = "chosen",
    most: Annotated[int, typer.Option("--most", min=1, help="Features at most.")] = 60,
    rate: Annotated[float, typer.Option("--false-discoveries", min=0.0, max=1.0, help="Largest corrected p value.")] = 0.05,
    alike: Annotated[
        float, typer.Option("--alike", min=0.0, max=1.0, help="|Spearman| from which features count as one.")
    ] = 0.7,
) -> None:
    """Choose features on the training segment: screening, redundancy, importance; kept as a named, versioned artefact."""
    run_step(context, lambda p: _study().selected(p.feature_study(), name, most=most, rate=rate, alike=alike))


@_app.command()
def reduce(
    context: typer.Context,
    kind: Annotated[str, typer.Option("--kind", help="pca, or autoencoder (extra torch).")] = "pca",
    components: Annotated[int, typer.Option("--components", min=1, help="Numbers that take the features' place.")] = 16,
    name: Annotated[str, typer.Option("--name", help="Name of the reduction; each fit is a new version.")] = "reduced",
) -> None:
    """Fit a reduction of the features on the training segment and say how much it holds and tells in each."""
    run_step(context, lambda p: _study().reduced(p.feature_study(), kind, components, name))


@_app.command()
def drift(
    context: typer.Context,
    days: Annotated[
        float, typer.Option("--days", min=0.1, help="How many of the last days are compared with training.")
    ] = 30.0,
) -> None:
    """Show which features have moved away from the distribution the model learned on."""
    run_step(context, lambda p: _study().drifted(p.feature_study(), days))


def _study() -> Any:
    from crypto_qlib.scheduler import feature_study

    return feature_study


def _specs(settings: Settings, *, every: bool) -> list[FeatureSpec]:
    """Return the catalogue of the sets of ``settings``, or of every set there is."""
    from crypto_qlib.feature_engineering.feature_generator import feature_catalogue
    from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS

    chosen = settings.features.model_copy(update={"sets": tuple(FEATURE_SETS)}) if every else settings.features
    return list(feature_catalogue(chosen, FRAME_NS[settings.data.frame]))


def _of_set(specs: list[FeatureSpec], group: str) -> list[FeatureSpec]:
    found = [s for s in specs if s.group == group]
    if not found:
        raise UserError(f"there is no feature set {group}", f"choose one of {', '.join(dict.fromkeys(s.group for s in specs))}")
    return found
