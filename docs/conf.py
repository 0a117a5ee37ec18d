"""Sphinx's settings for the documentation: `make docs` builds it into target/docs.

The reference comes from the docstrings, by autodoc. What pyhv._native has is shown with the signatures of its stub and
the docstrings of the module itself: autodoc sees a stand-in that is made of both.
"""

from __future__ import annotations

import builtins
import importlib
import re
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

ROOT = Path(__file__).resolve().parent.parent


def _documented(stub: Any, real: Any) -> None:
    """Gives what the stub declares the docstrings that the module has, and leaves signatures of classes to Python's."""
    for name, member in list(vars(stub).items()):
        doc = getattr(getattr(real, name, None), "__doc__", None)
        if name in ("__new__", "__init__"):
            delattr(stub, name)
        elif isinstance(member, FunctionType):
            member.__doc__ = doc
        elif isinstance(member, property):
            setattr(stub, name, property(member.fget, member.fset, None, doc))
        elif isinstance(member, type) and member.__module__ == "pyhv._native":
            _documented(member, getattr(real, name))
            member.__doc__ = doc
            member.__module__ = getattr(real, name).__module__


def _stand_in() -> ModuleType:
    """A module with the signatures of _native.pyi and the docstrings of pyhv._native."""
    real = importlib.import_module("pyhv._native")
    file = ROOT / "python/pyhv/_native.pyi"
    module = ModuleType("pyhv._native", real.__doc__)
    module.__file__ = str(file)
    flags = annotations.compiler_flag
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec", flags, dont_inherit=True), vars(module))
    _documented(module, real)
    return module


native = _stand_in()
for _name in [name for name in sys.modules if name.partition(".")[0] == "pyhv"]:
    del sys.modules[_name]
sys.modules["pyhv._native"] = native
pyhv = importlib.import_module("pyhv")

# General

project = "pyHV"
author = "the authors of pyHV"
release = version = pyhv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# `x` in a docstring is a link if there is such an x, else code.
default_role = "py:obj"
smartquotes_action = "D"  # dashes alone
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_class_signature = "mixed"
autoclass_content = "both"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"pyHV {release}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

# The reference

#: What a program is given, and does not make.
GIVEN = {"pyhv.HttpCall", "pyhv.Response", "pyhv.UploadedFile", "pyhv.WsUpgrade"}


def process_signature(
    _app: Sphinx, what: str, name: str, obj: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Classes that a program does not make, or makes with what arguments it likes, have no signature."""
    if what == "class" and (name in GIVEN or obj.__init__ is object.__init__):
        return "", None
    return None


def process_docstring(_app: Sphinx, what: str, name: str, obj: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings of the native module name their arguments as "name: what it is"; a type alias has a comment."""
    if what == "data":
        routes = ModuleAnalyzer.for_module("pyhv.routes").find_attr_docs()
        lines[:] = routes.get(("", name.rpartition(".")[2]), lines)
    code = getattr(obj, "__code__", None)
    if code is None or not code.co_filename.endswith(".pyi"):
        return
    count = code.co_argcount + code.co_kwonlyargcount
    one = "|".join(code.co_varnames[:count])
    names = re.compile(rf"(?:^|(?<=[.;] ))((?:{one})(?:, (?:{one}))*): ", re.MULTILINE)
    paragraphs = "\n".join(lines).split("\n\n")
    for index, paragraph in enumerate(paragraphs):
        if names.match(paragraph):
            text = names.sub(lambda found: f"\n:param {found[1]}: ", paragraph.replace("\n", " "))
            text = re.sub(r";? *\n", "\n", text).strip()
            paragraphs[index] = re.sub(r"(?<=\.) (?=Raises |Ctrl-C )", "\n\n", text)
    lines[:] = "\n\n".join(paragraphs).split("\n")


def missing_reference(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """pyhv.http.Headers, as annotations have it, is documented as pyhv.Headers."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    if name not in pyhv.__all__ or name in vars(builtins):
        return None
    domain = env.domains["py"]
    resolved = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"pyhv.{name}", node, content)
    return resolved if isinstance(resolved, nodes.reference) else None


# Links that lead out of docs/

#: Files elsewhere in the repository, and the pages that include them.
INCLUDED = {
    "README.md": "index.md",
    "SECURITY.md": "project/security-policy.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "LICENSE-MIT": None,
    "LICENSE-APACHE": None,
    "benchmarks/README.md": "project/benchmarks-tools.md",
    "compliance/README.md": "project/compliance.md",
    "examples/chat/README.md": "project/chat.md",
    "examples/chat": "project/chat.md",
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def relink(page: Path, text: str) -> str:
    """Leads links out of docs/ to the page that includes the file; where there is none only the text stays."""

    def target(link: re.Match[str]) -> str:
        path = (page.parent / link[2]).resolve()
        if path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT):
            return link[0] if page.is_relative_to(ROOT / "docs") else f"[{link[1]}](/{path.relative_to(ROOT / 'docs')})"
        included = INCLUDED.get(path.relative_to(ROOT).as_posix())
        return f"[{link[1]}](/{included}{link[3] or ''})" if included else link[1]

    return LINK.sub(target, text)


def source_read(app: Sphinx, docname: str, content: list[str]) -> None:
    if app.env.doc2path(docname).suffix == ".md":
        content[0] = relink(Path(app.env.doc2path(docname)), content[0])


def include_read(_app: Sphinx, path: Path, _docname: str, content: list[str]) -> None:
    content[0] = relink((ROOT / "docs" / path).resolve(), content[0])


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("missing-reference", missing_reference)
    app.connect("source-read", source_read)
    app.connect("include-read", include_read)
