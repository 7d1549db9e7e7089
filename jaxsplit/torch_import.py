"""`python -m jaxsplit.torch_import`: see `jaxsplit.weights.torch_import`."""

from absl import app

from jaxsplit.weights import torch_import

if __name__ == "__main__":
    __doc__ = torch_import.__doc__
    app.run(torch_import.main, flags_parser=torch_import.parse)
