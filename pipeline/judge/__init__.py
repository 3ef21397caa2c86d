"""How images and latents are judged, and the pages that show it; for evaluate, report, tune and compare."""
