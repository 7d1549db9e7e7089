"""A stand-in for the library wandb: what jaxsplit calls of it, with its rules for steps."""

RUNS: dict[str, "Run"] = {}  # id -> run, as on wandb's server
INITS: list[dict] = []


class Config(dict):
    def update(self, values, allow_val_change=False):
        for name, value in values.items():
            if name in self and self[name] != value and not allow_val_change:
                raise ValueError(f"config {name} has changed")
        super().update(values)


class Run:
    def __init__(self):
        self.config, self.rows, self.axes, self.exit_codes = Config(), [], {}, []
        self.open = False

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, data, step=None):
        if not self.open:
            raise RuntimeError("the run is finished")
        if step is None:
            step = len(self.rows)
        if step < len(self.rows):
            return  # wandb ignores such rows
        self.rows.append(dict(data))

    def finish(self, exit_code=None):
        self.open = False
        self.exit_codes.append(exit_code)


def init(*, project, name, id, resume, dir):
    assert resume == "allow"
    INITS.append(dict(project=project, name=name, id=id, dir=dir))
    run = RUNS.setdefault(id, Run())
    run.open = True
    return run


def clear():
    RUNS.clear()
    INITS.clear()
