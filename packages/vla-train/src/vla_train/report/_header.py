"""The top of the report: what the run is and its headline numbers."""

from __future__ import annotations

from vla_train.evaluation.against_mean import ERROR, MEAN, AgainstMean, against_mean
from vla_train.report._closed_loop import interval_text
from vla_train.report._made_with import other_weights
from vla_train.report._page import Markup, join, tag
from vla_train.report._run import Metrics, Run, finite
from vla_train.report._text import NONE, between, count, date, duration, number, rate, short_count


def header(run: Run) -> Markup:
    """Name, date, device, links to the sections and the headline numbers."""
    info = run.info
    badge = [tag("span", "trained from scratch", class_="badge")] if info.get("from_scratch") is True else []
    line = [date(info.get("started")), _on(run)]
    if run.resumed:
        line.append(f"went on after step{'s' * (len(run.resumed) > 1)} {', '.join(map(count, run.resumed))}")
    if run.info and not info.get("finished"):
        line.append("not finished")
    links = {
        "closed-loop": "Closed loop",
        "training": "Training",
        "predictions": "Predictions",
        "dims": "Per dim",
        "seen": "Pictures",
        "data": "Data",
        "model": "Model",
        "reproduce": "Reproduce",
    }
    return tag(
        "header",
        tag("p", f"{info.get('framework') or 'Policy'} · training report", class_="eyebrow"),
        tag("div", tag("h1", run.name), *badge, class_="title"),
        tag("p", " · ".join(part for part in line if part and part != NONE), class_="note"),
        tag(
            "nav",
            *(tag("a", text, href=f"#{anchor}") for anchor, text in links.items()),
            aria_label="Sections",
        ),
        tag("div", *_tiles(run), class_="tiles"),
    )


def _on(run: Run) -> str:
    """Device and processes."""
    device, many = run.info.get("device"), run.info.get("processes")
    if not device or not isinstance(many, int) or many < 2:
        return f"on {device}" if device else ""
    return f"on {many} processes ({run.info.get('engine')}), {str(device).partition(':')[0]}"


def verdict(metrics: Metrics) -> AgainstMean | None:
    """The last validation against the mean action, dim by dim; None where the run did not measure it."""
    known = {name: metrics.last(name) for prefix in (ERROR, MEAN) for name in metrics.names(prefix)}
    return against_mean({name: value for name, value in known.items() if value is not None})


def _tile(value: str, caption: str) -> Markup:
    return tag("div", tag("b", value), tag("span", caption), class_="tile")


def _tiles(run: Run) -> list[Markup]:
    tiles = []
    if run.rollout is not None:
        total = run.rollout.total
        interval = tag("span", f"({interval_text(total)})", class_="key")
        who = other_weights(run.rollout, run)
        of = " (not by this run's policy)" if who else ""
        success = join([f"success{of}, {total.successes} of {total.episodes} episodes ", interval])
        tiles.append(_tile(rate(total.rate), success))
    error, mean = run.metrics.last("val/action_mae"), run.metrics.last("val/mean_action_mae")
    if error is not None and finite(error):
        against = f"; mean action: {number(mean)}" if finite(mean) else ""
        tiles.append(_tile(number(error), f"held-out action error, normalised{against}"))
    whole = None if run.resumed else between(run.info.get("started"), run.info.get("finished"))
    seconds = run.metrics.seconds if whole is None else whole
    if seconds is not None:
        done, steps = run.metrics.last_step, run.max_steps or 0
        of = f" of {count(steps)}" if steps > done else ""
        tiles.append(_tile(duration(seconds), f"for {count(done)}{of} steps"))
    total_parameters = run.part("parameters").get("total")
    if isinstance(total_parameters, int):
        trainable = run.part("parameters").get("trainable")
        caption = "parameters"
        if isinstance(trainable, int) and trainable != total_parameters:
            caption += f", {short_count(trainable)} trainable"
        elif trainable == total_parameters:
            caption += ", all trainable"
        tiles.append(_tile(short_count(total_parameters), caption))
    return tiles
