"""What LDC-VAE is compared with: other autoencoders' objectives, other generators of latents."""
