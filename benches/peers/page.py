"""The page: tables of medians from the figures that compare.py collected."""

from statistics import median
from typing import Callable

DASH = "—"


class Column:
    """What stands in a column: values of an engine's result, and which of two is better."""

    def __init__(self, title: str, values: Callable[[dict], list[float]], form: str, more: bool, case: str | None = None):
        self.title = title
        self.values = values
        self.form = form
        self.more = more
        self.case = case

    def best(self, results: list[dict]) -> float | None:
        medians = [median(self.values(result)) for result in results if self.values(result)]
        # Alone nobody wins.
        if len(medians) < 2:
            return None
        return max(medians) if self.more else min(medians)


class Footnotes:
    def __init__(self):
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"

    def lines(self) -> list[str]:
        return [f"[{number}] {text}\n" for number, text in enumerate(self.texts, 1)]


def setup_column(title: str, key: str, unit: float, form: str) -> Column:
    return Column(title, lambda result: [setup[key] / unit for setup in result["setup"] if key in setup], form, more=False)


SETUP = [
    setup_column("start, s", "start_seconds", 1, "{:.2f}"),
    setup_column("load, s", "load_seconds", 1, "{:.2f}"),
    setup_column("load to first token, s", "first_token_seconds", 1, "{:.2f}"),
    setup_column("private, GB", "private", 1e9, "{:.2f}"),
    setup_column("private at most, GB", "peak", 1e9, "{:.2f}"),
    setup_column("mapped, GB", "mapped", 1e9, "{:.2f}"),
]


def case_columns(cases: list[dict]) -> list[Column]:
    prefill, decode, batch = [], [], []
    for case in cases:
        num_input, num_output, num_requests = case["num_input"], case["num_output"], case["num_requests"]

        def samples(result, name=case["name"]):
            return result["cases"].get(name, [])

        if num_requests > 1:
            title = f"{num_requests} × ({num_input} + {num_output}), new tokens/s"
            new = num_requests * num_output
            values = lambda result, samples=samples, new=new: [new / run["seconds"] for run in samples(result)]
            batch.append(Column(title, values, "{:.1f}", True, case["name"]))
            continue
        values = lambda result, samples=samples, n=num_input: [n / run["first_token_seconds"] for run in samples(result)]
        prefill.append(Column(f"prefill {num_input}, tokens/s", values, "{:.0f}", True, case["name"]))
        if num_output > 1:
            values = lambda result, samples=samples, n=num_output - 1: [
                n / (run["seconds"] - run["first_token_seconds"]) for run in samples(result)
            ]
            decode.append(Column(f"decode at {num_input}, tokens/s", values, "{:.1f}", True, case["name"]))
    return prefill + decode + batch


def table(results: dict[str, dict], columns: list[Column], notes: Footnotes) -> list[str]:
    best = [column.best(list(results.values())) for column in columns]
    lines = [row(["engine", *(column.title for column in columns)]), row(["---"] + ["--:"] * len(columns))]
    for name, result in results.items():
        cells = [cell(result, column, top, notes) for column, top in zip(columns, best)]
        note = notes.mark(f"{name}: {result['error']}") if result["error"] else ""
        lines.append(row([name + note, *cells]))
    return [*lines, ""]


def cell(result: dict, column: Column, best: float | None, notes: Footnotes) -> str:
    values = column.values(result)
    if not values:
        reason = result["skipped"].get(column.case)
        return DASH + (notes.mark(reason) if reason else "")
    value = column.form.format(median(values))
    wins = best is not None and value == column.form.format(best)
    text = f"**{value}**" if wins else value
    if len(values) == 1:
        return text
    return f"{text} ({column.form.format(min(values))}–{column.form.format(max(values))})"


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def agreement(figures: dict) -> list[str]:
    """For each engine, how many of the first tokens are those of the one that the others are held to."""
    # Quantising changes what is likeliest: see the losses.
    precisions = [precision for precision in figures["results"] if precision not in QUANTIZED]
    if not precisions:
        return []
    held_to = "f32" if "f32" in precisions else precisions[0]
    agreements = {name: result["agreement"] for name, result in figures["results"][held_to].items() if result.get("agreement")}
    if not agreements:
        return []
    reference = "transformers" if "transformers" in agreements else next(iter(agreements))
    expected = agreements[reference]
    lines = [row(["engine", *precisions]), row(["---"] + ["--:"] * len(precisions))]
    for name in figures["versions"]:
        if not any(name in figures["results"][precision] for precision in precisions):
            continue
        cells = []
        for precision in precisions:
            found = figures["results"][precision].get(name, {}).get("agreement")
            if not found:
                cells.append(DASH)
                continue
            same = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), len(expected))
            cells.append(f"{same} of {len(expected)}")
        lines.append(row([name, *cells]))
    return [
        "## Equal work\n",
        f"Before anything is timed, each engine continues the same prompt of random token ids. This many of the first tokens are those of {reference} in {TITLES[held_to]}:\n",
        *lines,
        "",
        "In float32 they are all to be the same: then weights, graph and greedy choice are. In bfloat16 engines round in different places, and over random weights, whose",
        "likeliest tokens lie close together, texts part sooner or later; this says nothing about quality.\n",
    ]


TITLES = {"bf16": "bfloat16", "f32": "float32", "q8": "8 bits", "q4": "4 bits"}
QUANTIZED = ("q8", "q4")
# The engine that this is the repository of.
OURS = "nano-vllm-rs"


def bits_of(weights: dict | None) -> float | None:
    """Bits a weight, over all tensors of the model."""
    return 8 * sum(weights["bytes"].values()) / weights["num_weights"] if weights else None


def against_peers(figures: dict, columns: list[Column]) -> list[str]:
    """For each width of weights and each case, this engine beside the best peer at that width, and at any."""
    results = figures["results"]
    widths = [precision for precision in QUANTIZED if OURS in results.get(precision, {})]
    if not widths:
        return []

    def best(column: Column, precisions: list[str]) -> tuple[float, str] | None:
        found = [
            (median(column.values(result)), f"{name}, {TITLES[precision]}")
            for precision in precisions
            for name, result in results[precision].items()
            if name != OURS and column.values(result)
        ]
        return (max if column.more else min)(found, default=None)

    lines = [
        row(["weights", "", OURS, "best peer of that width", "ratio", "best peer of any width", "ratio"]),
        row(["---", "---", "--:", "--:", "--:", "--:", "--:"]),
    ]
    for precision in widths:
        for column in columns:
            values = column.values(results[precision][OURS])
            own = median(values) if values else None
            cells = [TITLES[precision], column.title, column.form.format(own) if values else DASH]
            for peer in (best(column, [precision]), best(column, list(results))):
                if peer is None:
                    cells += [DASH, DASH]
                    continue
                value, name = peer
                cells += [f"{column.form.format(value)} ({name})", f"{own / value:.2f}" if values else DASH]
            lines.append(row(cells))
    return [
        "## Quantised weights beside the best of the peers\n",
        "Medians of the tables below. A ratio above 1 says that this engine is the faster one.\n",
        *lines,
        "",
    ]


def loss(figures: dict, columns: list[Column]) -> list[str]:
    """How far each quantised form of the demo is from it, beside its speed."""
    found = figures.get("loss")
    if not found:
        return []
    notes = Footnotes()
    decode = next((column for column in columns if column.title.startswith("decode")), None)
    beside = [column for column in (decode,) if column]
    titles = ["engine", "weights", "bits a weight", "mean KL", "median", "99th percentile", "same likeliest token", "perplexity", "mean KL, keys and values float32"]
    titles += [f"bits a weight of {figures['config']['name']}", *(column.title for column in beside)]
    lines = [row(titles), row(["---", "---"] + ["--:"] * (len(titles) - 2))]
    # By size, so that forms of about equal size stand beside each other.
    for each in sorted(found["rows"], key=lambda each: -(bits_of(each.get("weights")) or 0)):
        if "error" in each:
            lines.append(row([each["engine"] + notes.mark(each["error"]), each["model"], *[DASH] * (len(titles) - 2)]))
            continue
        result = figures["results"].get(each["precision"], {}).get(each["engine"], {})
        cells = [each["engine"], formats(each), number("{:.2f}", bits_of(each["weights"]))]
        measured = each["loss"]["16 bits"]
        if "error" in measured:
            cells += [DASH + notes.mark(measured["error"]), *[DASH] * 4]
        else:
            kl = measured["kl_divergence"]
            cells += [f"{kl[key]:.5f}" for key in ("mean", "median", "percentile_99")]
            cells += [f"{100 * measured['likeliest_token_agreement']:.1f} %", f"{measured['perplexity']:.3f}"]
        in_f32 = each["loss"]["f32"]
        cells.append(DASH + notes.mark(in_f32["error"]) if "error" in in_f32 else f"{in_f32['kl_divergence']['mean']:.5f}")
        cells.append(number("{:.2f}", bits_of(result.get("weights"))))
        for column in beside:
            values = column.values(result) if result else []
            cells.append(number(column.form, median(values) if values else None))
        lines.append(row(cells))
    perplexities = ", ".join(f"{value:.4f} by {name}" for name, value in found["perplexity"].items())
    return [
        "## Loss\n",
        f"Random weights say nothing of it: this is of the trained model in `{found['model']}`, over the {found['num_predicted']:,} predicted tokens of `{found['text']}` in windows of {found['context']}.",
        f"KL is the Kullback-Leibler divergence of a form's probabilities from those in float32, in nats a token. Perplexity in float32 is {perplexities}.",
        "Keys and values are kept in 16 bits, as where speed is measured, but in one column. OpenVINO's loss has that of computing in bfloat16 in it, where the processor does; in that column it computes in float32. Formats without a speed are there for their size.\n",
        *lines,
        "",
        "\n".join(notes.lines()),
    ]


def formats(each: dict) -> str:
    """The formats of a model's matrices, and the share of bytes of each."""
    of_matrices = {name: size for name, size in each["weights"]["bytes"].items() if name not in ("F32", "F16", "BF16")}
    total = sum(each["weights"]["bytes"].values())
    shares = ", ".join(f"{name} {100 * size / total:.0f} %" for name, size in of_matrices.items())
    return f"{each['model'].removeprefix('nv-')} ({shares})"


def number(form: str, value: float | None) -> str:
    return DASH if value is None else form.format(value)


def render(figures: dict) -> str:
    machine, config = figures["machine"], figures["config"]
    command = "python3 benches/peers/compare.py --venv DIR" + (" --quick" if figures["quick"] else "")
    cores = figures["threads"]
    lines = [
        "# Comparison\n",
        f"`{command}` wrote this page: the same {config['name']} with random weights and the same token ids, put through this engine and its peers in one session, in turn.",
        "Greedy, token ids in and out, no token ends a text. Medians, with least and most where there are several; the best of a column is bold.\n",
        row(["", ""]),
        row(["---", "---"]),
        row(["processor", f"{machine['cpu']}; {', '.join(machine['isa'])}"]),
        row(["threads", f"{cores} an engine"]),
        row(["memory", f"{machine['memory_bytes'] / 2**30:.0f} GiB"]),
        row(["system", machine["system"]]),
        row(["commit", f"`{figures['commit']}`, {figures['date']}"]),
        row(["rounds", str(figures["rounds"])]),
        "",
    ]
    columns = case_columns(figures["cases"])
    lines += against_peers(figures, columns) + loss(figures, columns)
    for precision, results in figures["results"].items():
        notes = Footnotes()
        lines += [f"## {TITLES[precision]}\n", *table(results, columns, notes), *table(results, SETUP, notes), *notes.lines()]
    lines += agreement(figures)
    lines += ["## What runs\n", *engines(figures), *METHOD]
    return "\n".join(lines)


def engines(figures: dict) -> list[str]:
    lines = [row(["engine", "version"]), row(["---", "---"])]
    for name, versions in figures["versions"].items():
        found = ", ".join(f"{package} {version}" for package, version in versions.items()) or "not installed"
        lines.append(row([name, found]))
    lines += ["", row(["weights", "engine", "how it computes"]), row(["---"] * 3)]
    for precision in figures["results"]:
        for name, computes in figures["computes"].items():
            if precision in computes:
                lines.append(row([TITLES[precision], name, computes[precision]]))
    return [*lines, ""]


METHOD = [
    "## Method\n",
    "- A round starts every engine in a process of its own, has all of them run a case before any runs the next, and ends them. Which one begins changes with each case. One computes at a time: half a second after the one before, and after a prompt of 16 tokens that isn't timed, since an engine's first pass over its weights after another's turn can be slow.",
    "- Prompts are new in every repetition, and prefix caches are off: nothing is found again. All engines get the same ones.",
    "- *Prefill*: length of the prompt over the time to the first token. *Decode*: tokens after the first over the time that they take. *N × (…)*: as many requests at once; all new tokens over the time until the last, prompts included.",
    "- *Start*: from the start of the process until it reads requests; for Python that is mostly imports. *Load*: from then until the model is there. *Load to first token*: with a first prompt of 16 tokens, for what engines leave until they need it.",
    "- *Private*: resident memory that is no file's, and what of it was swapped out, after a first text; *at most*: the most that was seen, looked at every 50 ms. *Mapped*: resident memory that is files', weights and libraries: the page cache's, which processes share and which gives way.",
    "- Engines in Rust use mimalloc. candle is built for this processor (`target-cpu=native`), as its own configuration has it; llama.cpp is, too; this engine is built for any and chooses its kernels when it starts.\n",
    "## Limits of the method\n",
    "- One machine, one model size, random weights and random ids: no engine can profit from text that repeats. Weights don't change what dense products cost.",
    "- Each engine runs as its documentation has it, with the number of threads and the precision set, and keys and values in the table's precision where it has a choice. Settings that someone who knows it well would find are not searched for: no `torch.compile`, no other BLAS for candle.",
    "- Equal precision is not equal arithmetic: see what runs. What is called 8 or 4 bits takes more: scales, and matrices that are kept in more bits. The bits a weight stand beside the loss.",
    "- The demo is small: its rows of 480 are no multiple of K-quants' 256, so llama.cpp keeps `down_proj` in other formats there, and its embedding is a smaller part of it than Qwen3-0.6B's.",
    "- A model's files are read into the page cache before an engine loads them, so that nobody waits for the disk.",
    "- candle-transformers has no scheduler: its requests are one batch of equally long prompts, which is the easiest case there is. llama.cpp gets its batches from a loop of the comparison, in C API calls through Python; so does its choice of tokens.",
    "- Few repetitions, and a virtual machine's neighbours: differences within the ranges mean nothing.\n",
]
