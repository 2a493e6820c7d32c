"""Molecular dynamics; the package itself is callable: `dphpc.md("run.yaml")`."""

from dphpc.core.callable_module import make_callable

make_callable(__name__, "dphpc.md.run:run_md")
