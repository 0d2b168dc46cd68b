"""The results as a table to read. They are what the JSON file holds."""

from collections.abc import Sequence
from typing import Any

Results = dict[str, Any]


def ratio(result: dict[str, Any], ours: dict[str, Any]) -> float | None:
    """A contender's rate over ours; None where either is absent."""
    if "rate" not in result or "rate" not in ours:
        return None
    return result["rate"] / ours["rate"]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]


class Notes:
    """Reasons, numbered as they first come."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"absent [{self.reasons.index(reason) + 1}]"

    def lines(self) -> list[str]:
        return [f"[{number}] {reason}" for number, reason in enumerate(self.reasons, 1)]


def timing_cell(result: dict[str, Any], ours: dict[str, Any], notes: Notes) -> str:
    if "absent" in result:
        return notes.mark(result["absent"])
    against_ours = ratio(result, ours)
    cell = f"{result['rate']:.1f}"
    return cell if against_ours is None else f"{cell} ({against_ours:.2f})"


def starred(contenders: list[dict[str, Any]]) -> list[str]:
    return [contender["name"] + ("*" if contender["alibi"] else "") for contender in contenders]


def timing_lines(results: Results, notes: Notes) -> list[str]:
    contenders = results["contenders"]
    rows = [["shape", *starred(contenders)]]
    for shape in results["shapes"]:
        ours = shape["results"][contenders[0]["name"]]
        cells = [timing_cell(shape["results"][contender["name"]], ours, notes) for contender in contenders]
        rows.append([shape["id"], *cells])
    return aligned(rows)


def check_cell(check: dict[str, Any], notes: Notes) -> str:
    if "absent" in check:
        return notes.mark(check["absent"])
    verdict = "" if check["max_error"] <= check["tolerance"] else " WRONG"
    return f"{check['max_error']:.1e}{verdict}"


def check_lines(results: Results, notes: Notes) -> list[str]:
    checked = results["checks"][0]["results"] if results["checks"] else {}
    peers = [contender for contender in results["contenders"] if contender["name"] in checked]
    rows = [["shape", *starred(peers)]]
    for check in results["checks"]:
        rows.append([check["id"], *(check_cell(check["results"][peer["name"]], notes) for peer in peers)])
    return aligned(rows)


def environment_line(environment: dict[str, Any]) -> str:
    fields = ("gpu", "driver", "cuda", "cudnn", "pytorch", "commit")
    return ", ".join(f"{field} {environment[field]}" for field in fields)


def table(results: Results) -> str:
    notes = Notes()
    checks, timings = check_lines(results, notes), timing_lines(results, notes)
    return "\n".join(
        [
            environment_line(results["environment"]),
            f"L2 {results['environment']['l2']}",
            "",
            "Largest error against float64 on a small shape; * computes ALiBi",
            *checks,
            "",
            f"{results['unit']} of the median call (over ours); ALiBi is not counted; * computes ALiBi",
            *timings,
            "",
            *notes.lines(),
        ]
    ).rstrip()
