#!/usr/bin/env python3
"""Ratios of one command with different options, from runs that take turns: the first to the last, then back, round after round.

Usage: pairs.py [--rounds N] [--show FIELD]... NAME=OPTIONS NAME=OPTIONS... -- COMMAND...

COMMAND with OPTIONS behind it has to print the report of `shardwright run --json`. Everything is compared with the first NAME: of each pair of
neighbours in time the ratio of decoded tokens per second; of all ratios the median and the quartiles. Every run has to give the logits of the
first, to the bit. A row of a Markdown table for each NAME; `header` as the only argument prints the head of the table."""
import json
import shlex
import statistics
import subprocess
import sys

HEAD = ["run", "options", "tokens/s, median", "over the first, median (quartiles)", "MB read per token", "besides"]


def row(cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def report(command, options):
    ran = subprocess.run(command + shlex.split(options), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"pairs.py: {shlex.join(command)} {options}: {ran.stderr[-500:]}")
    return json.loads(ran.stdout)


def field(value, name):
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def quartiles(values):
    if len(values) < 2:
        return f"{values[0]:.3f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f}, {high:.3f})"


def main():
    arguments = sys.argv[1:]
    if arguments == ["header"]:
        row(HEAD)
        print("|---" * len(HEAD) + "|")
        return
    if "--" not in arguments:
        sys.exit(__doc__)
    cut = arguments.index("--")
    own, command = arguments[:cut], arguments[cut + 1:]
    rounds, shown, named, title = 3, [], [], ""
    while own:
        word = own.pop(0)
        if word == "--rounds":
            rounds = int(own.pop(0))
        elif word == "--show":
            shown.append(own.pop(0))
        elif word == "--title":
            title = own.pop(0)
        else:
            named.append(tuple(word.split("=", 1)))
    found = {name: [] for name, _ in named}
    for turn in range(2 * rounds):
        for name, options in named if turn % 2 == 0 else reversed(named):
            found[name].append(report(command, options))
    first = found[named[0][0]]
    for name, options in named:
        for ran in found[name]:
            if ran["logits_blake3"] != first[0]["logits_blake3"]:
                sys.exit(f"pairs.py: {name}: other logits than {named[0][0]}")
        rates = [ran["decode"]["tokens_per_second"] for ran in found[name]]
        ratios = [rate / ran["decode"]["tokens_per_second"] for rate, ran in zip(rates, first)]
        last = found[name][-1]
        per_token = last["decode"]["bytes_read"] / max(last["decode"]["tokens"], 1) / 1e6
        besides = [f"{key.rsplit('.', 1)[-1]} {value}" for key in shown if (value := field(last, key)) is not None]
        row([title or name, options or "none", f"{statistics.median(rates):.2f}", quartiles(ratios), f"{per_token:.3f}", ", ".join(besides)])


if __name__ == "__main__":
    main()
