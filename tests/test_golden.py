"""What people and programs see of the commands, held to recorded files; a change of them shows in a diff.

``pytest tests/test_golden.py --update-golden`` records anew what has changed on purpose. A new help is an empty file, a
new fault a file whose first line is its command.
"""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from command_support import TINY, execute
from fewshot_worlds import CLASSES, write_class_folders

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two clips to classify, a class folder, label files good and bad, settings good and bad."""
    root = tmp_path_factory.mktemp("golden")
    write_class_folders(root / "folders", clips=4)
    (root / "clips").mkdir()
    (root / "nothing").mkdir()
    for name, source in (("a.mp4", CLASSES[0]), ("b.mp4", CLASSES[2])):
        (root / "clips" / name).write_bytes((root / "folders" / source / "0.mp4").read_bytes())
    (root / "clips" / "broken.mp4").write_bytes(b"no film")
    (root / "labels.txt").write_text("\n".join(CLASSES))
    (root / "empty.txt").write_text("\n# nothing\n")
    (root / "double.txt").write_text("dog barking\nviolin\ndog barking\n")
    (root / "keys.yaml").write_text("shotz: 3\nlr: fast\n")
    (root / "bad").mkdir()
    (root / "bad" / "avfs.toml").write_text('backbon = "tiny"\ntopk = "many"\n[dataa]\nave = "AVE"\n')
    return root


@pytest.fixture(scope="module")
def call(world):
    """Run a command in the world's folder: its status and a normalised stdout and stderr."""

    def call(*arguments, folder=world):
        status, out, err = execute(folder, *arguments, columns=110, cache=world / "cache")
        return status, normalised(out, world), normalised(err, world)

    return call


def normalised(text: str, world: Path) -> str:
    """Without what differs from machine to machine and from run to run."""
    text = text.replace(str(world), "WORLD").replace(str(world.resolve()), "WORLD")
    text = re.sub(r"/\S*/avfewshot/(?=\w)", "PACKAGE/", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[ T_-]?\d\d[:-]?\d\d([:-]?\d\d)?(-\d\d)?", "TIME", text)
    text = re.sub(r"\b\d+(\.\d+)? (s|min|ms|clips/s|GB|MB|GiB|MiB)\b", r"N \2", text)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip() + "\n"


@pytest.fixture
def golden(request):
    """Compare with a recorded file, or record it."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} was never recorded; run pytest with --update-golden"
        assert text == path.read_text(encoding="utf-8")

    return compare


def rounded(value):
    """Numbers to two digits: they differ a little between processors."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 2) + 0.0 if isinstance(value, float) else value


def schema(value):
    """Names and types of a JSON document, without its figures; of a list what all its items have."""
    if isinstance(value, dict):
        return {key: schema(item) for key, item in value.items()}
    if isinstance(value, list):
        kinds = {json.dumps(schema(item)): None for item in value}
        return [json.loads(kind) for kind in sorted(kinds)]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def dumped(value) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def recorded(folder: str) -> list[str]:
    return sorted(path.stem for path in (GOLDEN / folder).glob("*.txt"))


@pytest.mark.parametrize("name", recorded("help"))
def test_help(call, golden, name):
    status, out, err = call(*(() if name == "avfs" else name.split("-")), "--help")
    assert (status, err.strip()) == (0, "")
    golden(f"help/{name}.txt", out)


@pytest.mark.parametrize("name", recorded("faults"))
def test_faults(call, world, golden, name):
    line = (GOLDEN / "faults" / f"{name}.txt").read_text(encoding="utf-8").partition("\n")[0]
    place, command = re.fullmatch(r"\$ (?:cd (\S+); )?avfs (.+)", line).groups()
    status, out, err = call(*command.split(), folder=world / (place or "."))
    assert status in (1, 2)
    golden(f"faults/{name}.txt", f"{line}\n[status {status}]\n{out}{err}".strip() + "\n")


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "table"])
def test_zeroshot_output(call, golden, form):
    arguments = ("zeroshot", "clips", "--labels", "labels.txt", *TINY, "--format", form)
    status, out, err = call(*arguments, *(["--segments"] if form.startswith("json") else []))
    assert status == 1, err  # broken.mp4
    if form == "json":
        golden("zeroshot.json", dumped(rounded(json.loads(out))))
    elif form == "jsonl":
        golden("zeroshot.jsonl", "".join(json.dumps(rounded(json.loads(line))) + "\n" for line in out.splitlines()))
    elif form == "csv":
        rows = [
            [rounded(float(cell)) if re.fullmatch(r"\d*\.\d+", cell) else cell for cell in row] for row in csv_rows(out)
        ]
        golden("zeroshot.csv.json", dumped(rows))
    else:
        golden("zeroshot.txt", re.sub(r"\d+\.\d %", "N %", out))


def csv_rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_files_of_a_fewshot_run(call, world, golden):
    status, _, err = call(
        *("fewshot", "--data", "folders", "--shots", "1", "--epochs", "1", "--hidden", "8", "--workers", "0"),
        *("--seeds", "1", "--name", "golden", *TINY),
    )
    assert status == 0, err
    [folder] = (world / "runs" / "folder").glob("*-golden")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    golden("fewshot/files.txt", "\n".join(files) + "\n")
    for name in ("results.json", "run.json"):
        document = json.loads((folder / name).read_text(encoding="utf-8"))
        golden(f"fewshot/schema-of-{name}", dumped(schema(document)))
    for path in sorted(folder.glob("*.csv")):
        golden(f"fewshot/columns-of-{path.name}.txt", "\n".join(csv_rows(path.read_text(encoding="utf-8"))[0]) + "\n")
