"""The command line from a clone; `jaxsplit VERB` of an installed package is the same program.

python main.py --config=configs/digits_wrn16_4_x4.py --workdir=runs/digits
python main.py --mode=eval --workdir=runs/digits --checkpoint=best
python main.py --mode=summary --config=configs/imagenet_seresnet101_x4.py
python main.py --mode=show_views --config=configs/digits_wrn16_4_x4.py --workdir=runs/digits
python main.py --mode=export_leader --workdir=runs/ffsd
python main.py --config=configs/digits_wrn16_4_x4.py --workdir=runs/tuned --init_from=runs/other
"""

import sys

from jaxsplit import cli

if __name__ == "__main__":
    sys.exit(cli.run_main())
