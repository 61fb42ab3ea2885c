"""Writes a new noun of a service, with everything that belongs to a noun.

    python -m tools.new_noun techfiles fabric
    python -m tools.new_noun pipeline match --plural matches --kinds exact,similar
    python -m tools.new_noun assets moodboard --room library

A new noun has a name and a description, and a kind if --kinds lists its words. It can be created,
read, listed, changed, deleted and watched; its tests pass. CONTRIBUTING.md says how to add the
fields it is meant for.

New files are made from tools/noun/*.tmpl. Existing files are changed at places that are found by
parsing them. Every change is made in memory first: if one fails, nothing is written.
"""

import argparse
import ast
import keyword
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from tools.python_text import (
    Problem,
    assigned,
    end_of,
    function,
    with_element,
    with_imports,
    with_line,
)

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).resolve().parent / "noun"
SERVICES = ("assets", "conversions", "pipeline", "techfiles")
COLUMNS = 100
MOST_CHARACTERS = 20  # longer names make lines of the templates longer than COLUMNS
MOST_OF_REVISION = 32  # alembic_version.version_num
_WORD = re.compile(r"[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*")

Files = dict[str, str]  # contents by path below the root


@dataclass(frozen=True)
class Noun:
    service: str
    name: str  # the singular, such as `tech_file`
    plural: str
    kinds: tuple[str, ...] = ()
    room: str = ""  # for nouns of assets

    @property
    def package(self) -> str:
        return f"{self.service}.{self.room}" if self.room else self.service

    @property
    def folder(self) -> str:
        return f"services/{self.package.replace('.', '/')}"

    @property
    def page(self) -> str:
        return (
            f"docs/assets/{self.plural.replace('_', '')}.md"
            if self.room
            else f"docs/{self.plural}.md"
        )

    def words(self) -> dict[str, str]:
        """Returns the value of each `$name` of the templates."""
        text, texts = self.name.replace("_", " "), self.plural.replace("_", " ")
        article = "an" if text[0] in "aeiou" else "a"
        kinds = [f"{self.name}_KIND_{kind}".upper() for kind in self.kinds]
        columns = ("name", "description", *(["kind"] if self.kinds else []))
        quoted = ", ".join(f'"{column}"' for column in columns)
        example = f', "kind": "{kinds[0]}"' if kinds else ""
        return {
            "service": self.service,
            "Service": self.service.capitalize(),
            "package": self.package,
            "noun": self.name,
            "nouns": self.plural,
            "Noun": camel(self.name),
            "Nouns": camel(self.plural),
            "NOUN": self.name.upper(),
            "NOUNS": self.plural.upper(),
            "text": text,
            "texts": texts,
            "Text": text.capitalize(),
            "Texts": texts.capitalize(),
            "a": article,
            "A": article.capitalize(),
            "columns": quoted,
            "mask": quoted,
            "sql_kinds": ", ".join(f"'{kind}'" for kind in self.kinds),
            "first_kind": kinds[0] if kinds else "",
            "second_kind": kinds[1] if kinds else "",
            "enum_values": "\n".join(enum_values(self.kinds, kinds)),
            "noun_json": lower_camel(self.name),
            "id_json": lower_camel(f"{self.name}_id"),
            "json_of_new": f'{{"name": "the first one"{example}}}',
        }


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def lower_camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def enum_values(kinds: Sequence[str], values: Sequence[str]) -> Iterator[str]:
    for number, (kind, value) in enumerate(zip(kinds, values, strict=True), start=1):
        yield f"  // The kind {kind.replace('_', ' ')}."
        yield f"  {value} = {number};"


# The templates


def filled(name: str, noun: Noun, **more: str) -> str:
    """Returns the template with its names replaced. Lines that begin with `?` are kept for nouns
    with kinds."""
    kept = {"?": bool(noun.kinds)}
    lines = []
    for line in (TEMPLATES / f"{name}.tmpl").read_text().splitlines():
        if kept.get(line[:1], True):
            lines.append(line[1:] if line[:1] in kept else line)
    return Template("\n".join(lines) + "\n").substitute({**noun.words(), **more})


def wrapped(proto: str) -> str:
    """Wraps lines longer than COLUMNS. A template has each comment in one line."""
    lines: list[str] = []
    for line in proto.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        if len(line) > COLUMNS and line.lstrip().startswith("// "):
            begin = f"{indent}// "
            lines += textwrap.wrap(
                line.lstrip()[3:],
                COLUMNS,
                initial_indent=begin,
                subsequent_indent=begin,
                break_on_hyphens=False,
            )
        elif len(line) > COLUMNS and " returns (" in line:
            head, _, tail = line.partition(" returns (")
            lines += [head, f"{indent}    returns ({tail}"]
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def refilled(page: str) -> str:
    """Wraps the paragraphs of a page. A template has each paragraph in one line, and no blank line
    in a block of commands."""
    parts = page.rstrip().split("\n\n")
    return "\n\n".join(part if "\n" in part else filled_lines(part) for part in parts) + "\n"


def filled_lines(paragraph: str) -> str:
    """Wraps a paragraph between words, but not within the words of a link."""
    held = re.sub(r"\[[^]]*\]", lambda link: link[0].replace(" ", "\0"), paragraph)
    lines = textwrap.wrap(held, COLUMNS, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


# Existing files


def read(path: str) -> str:
    if not (ROOT / path).is_file():
        raise Problem(f"{path} isn't there, and a noun stands in it")
    return (ROOT / path).read_text()


# The service


def revisions(noun: Noun) -> dict[str, Any]:
    """Returns the revisions of the service's migrations, each with its predecessor."""
    found: dict[str, Any] = {}
    folder = ROOT / "services" / noun.service / "migrations" / "versions"
    for path in sorted(folder.glob("*.py")):
        values: dict[str, Any] = {
            ast.unparse(node.targets[0]): node.value.value
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }
        if "revision" not in values:
            raise Problem(f"{path.relative_to(ROOT)} names no revision")
        found[values["revision"]] = values.get("down_revision")
    return found


def migration(noun: Noun) -> Files:
    found = revisions(noun)
    newest = sorted(set(found) - set(found.values()))
    if len(newest) != 1:
        raise Problem(f"the migrations of {noun.service} end in {newest}, and a chain has one end")
    number = max(int(revision[:4]) for revision in found) + 1
    revision = f"{number:04}_{noun.plural}"
    if len(revision) > MOST_OF_REVISION:
        raise Problem(f"{revision} is longer than the {MOST_OF_REVISION} characters of a revision")
    path = f"services/{noun.service}/migrations/versions/{revision}"
    script = filled("migration.py", noun, revision=revision, down_revision=newest[0])
    return {f"{path}.py": script, f"{path}.sql": filled("tables.sql", noun)}


def with_table(noun: Noun) -> Files:
    path = f"services/{noun.service}/tables.sql"
    text = read(path)
    if re.search(rf"^CREATE TABLE {noun.plural} ", text, re.MULTILINE):
        raise Problem(f"{path} has a table {noun.plural}")
    return {path: f"{text.rstrip()}\n\n{filled('tables.sql', noun)}"}


def servicers(path: str, text: str) -> tuple[ast.List, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Returns the list of registered servicers, and the function that holds it. Raises Problem."""
    for outer in ast.parse(text).body:
        if not isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(outer):
            named = (isinstance(node, ast.keyword) and node.arg == "register") or (
                isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "register"
            )
            if named or (isinstance(node, ast.Return) and outer.name == "_servicers"):
                value = getattr(node, "value", None)
                if isinstance(value, ast.List) and value.elts:
                    return value, outer
    raise Problem(f"{path} has no list `register` of servicers, and no `_servicers` with one")


def registered(noun: Noun) -> Files:
    """Registers the servicer in `__main__.py`, and the events that webhooks may be told."""
    path = f"services/{noun.service}/__main__.py"
    text = read(path)
    found, outer = servicers(path, text)
    known = {each.arg for each in ast.walk(outer) if isinstance(each, ast.arg)}
    known |= {each.id for each in ast.walk(outer) if isinstance(each, ast.Name)}
    if not {"db", "stream"} <= known:
        raise Problem(f"{path}: {outer.name} has no `db` and `stream` for the servicer")
    add = f"{noun.name}_pb2_grpc.add_{camel(noun.name)}ServiceServicer_to_server"
    both = f"{add}, {noun.plural}.{camel(noun.name)}Service(db, stream)"
    pairs = isinstance(found.elts[0], ast.Tuple)
    # From the end to the beginning, so that earlier positions stay valid.
    text = with_element(
        text, found.elts[-1], f"({both})" if pairs else f"functools.partial({both})"
    )
    events = assigned(path, text, "EVENTS", ast.Call)
    subjects = [each for each in getattr(events, "args", []) if isinstance(each, ast.Dict)]
    if len(subjects) != 1 or not subjects[0].values:
        raise Problem(f"{path}: EVENTS isn't made of a dictionary of subjects")
    if repr(noun.name) in [ast.unparse(each) for each in subjects[0].keys if each]:
        raise Problem(f"{path}: EVENTS has the subject {noun.name}")
    told = f'"{noun.name}": {noun.name}_pb2.{camel(noun.name)}'
    gone = f'"purged_{noun.name}": {noun.name}_pb2.Purged{camel(noun.name)}'
    text = with_element(text, subjects[0].values[-1], f"{told}, {gone}")
    return {
        path: with_imports(
            text,
            f"from atelier.{noun.service}.v1 import {noun.name}_pb2, {noun.name}_pb2_grpc",
            f"from services.{noun.package} import {noun.plural}",
        )
    }


def layered(noun: Noun) -> Files:
    """Adds the two modules to the import rules of their service, in pyproject.toml."""
    path, package = "pyproject.toml", f"services.{noun.service}"
    text = read(path)
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    if noun.room:  # the layers of assets are its folders, the rooms
        return {path: protected(path, text, contracts, f"services.{noun.package}.{noun.plural}")}
    for contract in contracts:
        layers = contract.get("layers", [])
        prefix = "" if contract.get("containers") == [package] else f"{package}."
        rows = [layer for layer in layers if "_rows" in layer]
        if rows and layers[0] == f"{prefix}__main__":
            for layer, module in ((layers[1], noun.plural), (rows[-1], f"{noun.name}_rows")):
                text = replaced(path, text, f'"{layer}"', f'"{layer} | {prefix}{module}"')
            return {path: text}
    raise Problem(f"{path} has no contract with layers of {package} below __main__")


def protected(path: str, text: str, contracts: list[dict[str, Any]], module: str) -> str:
    """Returns the text with a servicer that only __main__ may import."""
    for contract in contracts:
        if contract.get("allowed_importers") == ["services.assets.__main__"]:
            last = [each for each in contract["protected_modules"] if each < module][-1:]
            if last:
                return replaced(path, text, f'"{last[0]}",', f'"{last[0]}",\n    "{module}",')
    raise Problem(f"{path} has no contract of the modules that services.assets.__main__ may import")


def replaced(path: str, text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise Problem(f"{path} has {old} {text.count(old)} times, and must have it once")
    return text.replace(old, new)


# Tests and pages


def tenancy(noun: Noun) -> Files:
    """Adds the noun's tenancy cases: each rpc as called by the owner and by others."""
    path = f"tests/tenancy_cases/{noun.service}.py"
    text = read(path)
    cases = assigned(path, text, "CASES", ast.Dict)
    assert isinstance(cases, ast.Dict)
    text = with_element(
        text, cases.values[-1], filled("tenancy_cases.py", noun).strip().rstrip(",")
    )
    prepare = function(path, text, "prepare")
    made = [node.value for node in ast.walk(prepare) if isinstance(node, ast.Return)]
    if len(made) != 1 or not isinstance(made[0], ast.Call):
        raise Problem(f"{path}: prepare doesn't return Owned(...) in one place")
    arguments: list[ast.AST] = [*made[0].args, *made[0].keywords]
    text = with_line(text, prepare, f"\n\n{filled('tenancy_rows.py', noun)}")
    ids = f"{noun.name}_ids=await _{noun.plural}(owner, canary)"
    text = with_element(text, max(arguments, key=lambda each: end_of(text, each)), ids)
    owned = [node for node in ast.parse(text).body if getattr(node, "name", "") == "Owned"]
    if not owned:
        raise Problem(f"{path} has no class Owned")
    text = with_line(
        text, owned[0], f"    {noun.name}_ids: list[str]  # one to delete, one to keep\n"
    )
    return {
        path: with_imports(
            text,
            f"from atelier.{noun.service}.v1 import {noun.name}_pb2, {noun.name}_pb2_grpc",
            "from tests.tenancy_cases import NOT_FOUND, Case, nothing",
        )
    }


def schema_words(noun: Noun) -> Files:
    """Names the enum whose words the column `kind` holds."""
    if not noun.kinds:
        return {}
    path = f"tests/schema_words/{noun.service}.py"
    text = read(path)
    words = assigned(path, text, "WORDS", ast.List)
    assert isinstance(words, ast.List)
    line = f'("{noun.plural}", "kind", None, {noun.name}_rows.KINDS)'
    text = with_element(text, words.elts[-1], line)
    return {path: with_imports(text, f"from services.{noun.package} import {noun.name}_rows")}


def pages(noun: Noun) -> Files:
    """Says how test_pages makes the rows of the list as large as possible."""
    path = "tests/test_pages.py"
    text = read(path)
    lists = assigned(path, text, "LISTS", ast.Dict)
    assert isinstance(lists, ast.Dict)
    name = f"{noun.service}.v1.{camel(noun.name)}Service.List{camel(noun.plural)}"
    rows = f'grown("{noun.service}.{noun.plural}", 700, description=wide(2000))'
    return {path: with_element(text, lists.values[-1], f'"{name}": {rows}')}


def documented(noun: Noun) -> Files:
    """Adds the noun's page, its line in the list of pages, and its line in the event types."""
    text = noun.plural.replace("_", " ")
    if noun.room:
        line = f"| [{text}](assets/{Path(noun.page).name}) | {text} of an owner |"
        index, after = "docs/assets.md", r"^\| \[[\w ]+\]\(assets/\w+\.md\) \|.*\n"
    else:
        line = f"- [{noun.page}]({noun.page}): {text}, call by call"
        index, after = "README.md", r"^- \[docs/\w[\w-]*\.md\].*\n(?:  .*\n)*"
    package = f"atelier.{noun.service}.v1"
    change = f"| `{noun.service}.{noun.name}.` | `created`, `updated`, `purged` |"
    data = f"`{package}.{camel(noun.name)}`; of `purged` `{package}.Purged{camel(noun.name)}`"
    types = "docs/assets/webhooks.md"
    template = "page_of_assets.md" if noun.room else "page.md"
    return {
        noun.page: refilled(filled(template, noun)),
        index: below(index, after, line),
        types: below(types, rf"^\| `{noun.service}\.\w+\.` \|.*\n", f"{change} {data} |"),
    }


def below(path: str, pattern: str, line: str) -> str:
    """Returns the text with a line below the last match of the pattern."""
    text = read(path)
    found = list(re.finditer(pattern, text, re.MULTILINE))
    if not found:
        raise Problem(f"{path} has no line like {pattern}, below which to put {line!r}")
    return f"{text[: found[-1].end()]}{line}\n{text[found[-1].end() :]}"


# Everything together


def new_files(noun: Noun) -> Files:
    return {
        f"protos/atelier/{noun.service}/v1/{noun.name}.proto": wrapped(filled("noun.proto", noun)),
        f"{noun.folder}/{noun.name}_rows.py": filled("rows.py", noun),
        f"{noun.folder}/{noun.plural}.py": filled("servicer.py", noun),
        f"tests/{noun.service}/test_{noun.plural}.py": filled("test.py", noun),
    }


def plan(noun: Noun) -> Files:
    """Returns every new or changed file with its content. Raises Problem."""
    check(noun)
    made = new_files(noun) | migration(noun)
    docs = documented(noun)
    for path in [*made, noun.page]:
        if (ROOT / path).exists():
            raise Problem(f"{path} is there already; take another noun")
    made |= docs
    for part in (with_table, registered, layered, tenancy, schema_words, pages):
        made |= part(noun)
    return {path: laid_out(path, text) for path, text in made.items()}


def check(noun: Noun) -> None:
    for name in (noun.name, noun.plural, *noun.kinds):
        if not _WORD.fullmatch(name) or keyword.iskeyword(name):
            raise Problem(f"{name!r} isn't small letters and digits with underscores between them")
    if noun.name == noun.plural:
        raise Problem("the plural is the singular: name another with --plural")
    if max(len(noun.name), len(noun.plural)) > MOST_CHARACTERS:
        raise Problem(f"a noun has at most {MOST_CHARACTERS} characters")
    if len(noun.kinds) == 1 or len(set(noun.kinds)) < len(noun.kinds):
        raise Problem("--kinds are at least two different words")
    if (noun.service == "assets") != bool(noun.room):
        raise Problem("--room names the folder of a noun of assets, and of no other service")
    if not (ROOT / noun.folder / "__init__.py").is_file():
        raise Problem(f"{noun.folder} is no package")
    for path in sorted((ROOT / "protos/atelier" / noun.service / "v1").glob("*.proto")):
        taken = rf"^(message|enum|service) (Purged)?{camel(noun.name)}(Service|Kind)? \{{"
        if re.search(taken, path.read_text(), re.MULTILINE):
            raise Problem(f"{path.relative_to(ROOT)} defines {camel(noun.name)} already")


def laid_out(path: str, text: str) -> str:
    """Lets ruff sort the imports, drop unused names and lay the code out."""
    if not path.endswith(".py"):
        return text
    ruff = Path(sys.executable).with_name("ruff")
    sort = ["check", "--quiet", "--select", "I,F401", "--fix", "--stdin-filename", path, "-"]
    for arguments in (sort, ["format", "--quiet", "--stdin-filename", path, "-"]):
        try:
            done = subprocess.run(
                [ruff, *arguments], cwd=ROOT, input=text, capture_output=True, text=True
            )
        except FileNotFoundError:
            raise Problem("ruff isn't there: `make check` installs it") from None
        if done.returncode:
            raise Problem(f"ruff can't read what would be {path}: {done.stderr or done.stdout}")
        text = done.stdout
    return text


def write(files: Mapping[str, str]) -> None:
    for path, text in files.items():
        (ROOT / path).write_text(text)


def plural_of(name: str) -> str:
    if re.search(r"[^aeiou]y$", name):
        return f"{name[:-1]}ies"
    return f"{name}es" if re.search(r"(s|x|z|ch|sh)$", name) else f"{name}s"


NEXT = """
Next:
  make test T=tests/{service}/test_{nouns}.py
  make guards N={noun}  the tests that guard every noun, for this one
  make lint
They pass as it stands. Then give it what it is for: CONTRIBUTING.md lists the places under
"A noun"."""


def parsed(arguments: Sequence[str]) -> Noun:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("service", choices=SERVICES)
    parser.add_argument("noun", help="in the singular, such as tech_file")
    parser.add_argument("--plural", help="where English is irregular")
    parser.add_argument("--kinds", default="", help="words of an enum, such as woven,knitted")
    parser.add_argument("--room", default="", help="the folder of services/assets that it is in")
    given = parser.parse_args(arguments)
    kinds = tuple(filter(None, given.kinds.split(",")))
    return Noun(given.service, given.noun, given.plural or plural_of(given.noun), kinds, given.room)


def main() -> None:
    noun = parsed(sys.argv[1:])
    try:
        files = plan(noun)
    except Problem as problem:
        sys.exit(f"new_noun: {problem}")
    told = [f"{'changed' if (ROOT / path).exists() else 'new':8} {path}" for path in sorted(files)]
    write(files)
    print("\n".join(told))
    print(NEXT.format(service=noun.service, noun=noun.name, nouns=noun.plural))


if __name__ == "__main__":
    main()
