"""The schedulers of diffusers as samplers of fastdiff: the same times, levels and steps, off-by-ones included.

from fastdiff.interop.diffusers import sampler_options
sampler = fastdiff.Sampler(lambda x, t, **cond: unet(x, t, **cond).sample, **sampler_options(pipe.scheduler, 20))
"""

from .configs import read_config
from .mapping import sampler_options
from .process import SchedulerProcess

__all__ = ["SchedulerProcess", "read_config", "sampler_options"]
