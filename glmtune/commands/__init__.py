"""A verb of the command line is a module here: `commands/ls.py` is `glmtune ls`. Names that begin with `_` are none.

Each module has:

- a docstring whose first line is its help: "`glmtune ls`: list tasks, methods, ...";
- `add_arguments(parser)`, which declares its arguments;
- `run(...)`, which does the work and returns its result, for Python as well;
- `show(result, options)`, which prints a result;
- `main(options)`, which runs and shows, and returns the exit code where it is not 0.

`glmtune --help` imports all of them, so that what is heavy (torch, transformers, pydantic, rich) is imported within the
functions. No command imports another: what two of them need stands on a lower floor.
"""
