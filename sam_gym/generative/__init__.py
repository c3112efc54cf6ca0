"""The denoising family: small pictures of cells, a diffusion model that draws them, classifiers that judge them.

Its environments are `sam_gym.envs.denoise`. It needs the extra `diffusion` and knows nothing of SAM.
"""
