"""Does feeding the learnt latent energy back into the encoder's target help (`train.consistency`)?

    python benchmarks/consistency.py [--shares 0,0.1,0.3,0.6,1] [key=value …]

LDC-VAE with SVGD encoder on the bundled digits, one for each share and seed, by `pipeline.compare`: FD of decoded
latents by generator. With `storage=FOLDER` it goes on where it was interrupted. What must fall is the row of a
generator; what may rise is the bound, since the latents get simpler at the cost of the reconstruction.
"""

import argparse
import sys
import tempfile

from scaling import compare_rows, figure_cells

GENERATORS = ("prior", "gaussian", "gmm", "score_difference", "encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", default="0,0.1,0.3,0.6,1")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    asked = parser.parse_intermixed_args()
    lines = ["| share | " + " | ".join(GENERATORS) + " |", "|---" * (1 + len(GENERATORS)) + "|"]
    with tempfile.TemporaryDirectory() as storage:
        for share in asked.shares.split(","):
            settings = [f"storage={storage}", "name=consistency", "compare.seeds=3", f"train.consistency={share}"]
            rows = compare_rows(GENERATORS, [*settings, *asked.overrides])
            cells = [figure_cells(rows[name], [("fd", 1.0)]) for name in GENERATORS]
            lines.append(f"| {share} | {' | '.join(cells)} |")
    sys.stdout.write("\n".join(["", *lines, ""]))


if __name__ == "__main__":
    main()
