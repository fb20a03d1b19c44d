"""Every configuration key with its meaning. The other files in this folder change some of them.

The defaults are the paper's if they are the same for all its data sets (appendix A).
"""

from ml_collections import ConfigDict

VERSION = 3  # increases when keys or names of values change: see nvae_jax/run_directory.py


def get_config():
    """The base configuration: locked, so that a misspelt key is an error."""
    config = ConfigDict()
    config.version = VERSION  # version of the keys; do not change it
    config.seed = 0  # seed of parameters, data order, augmentation and latent noise

    config.data = data = ConfigDict()
    data.name = "digits"  # a source in nvae_jax/data/sources.py
    data.dir = ""  # folder of its files; "" is the source's default folder
    data.image_size = 32  # height and width, padding included; 0: taken from the data
    data.channels = 1  # 1 (grey) or 3; 0: taken from the data
    data.padding = 0  # zeros on every side, part of image_size; not counted by the likelihood
    # White in 16-bit images. 0: as the files state, or the highest value of num_bits or 16 bits.
    data.max_value = 0
    data.num_bits = 8  # bits per colour value; more than 8 for 16-bit grey pictures and arrays
    data.binarize = False  # draw each pixel from Bernoulli(value / 255) every time it is read
    data.horizontal_flip = False  # flip images at random in training
    data.skip_corrupt = False  # skip and count unreadable examples instead of stopping
    data.workers = 0  # reader processes, at most four per core; 0: threads of the training process

    config.model = model = ConfigDict()
    model.num_scales = 2
    model.num_groups = 10  # latent groups of the finest scale
    model.adaptive_groups = True  # each coarser scale has half as many groups as the one below
    model.min_groups = 1  # ... but at least this many
    model.latent_channels = 20  # channels of every group
    model.encoder_width = 32  # channels at full resolution; they double when the size is halved
    model.decoder_width = 32
    model.process_blocks = 2  # how often the size is halved before the towers, and doubled after
    model.preprocess_cells = 3  # cells in each such block
    model.postprocess_cells = 3
    model.encoder_cells_per_group = 2
    model.decoder_cells_per_group = 2
    model.encoder_cell = "residual"  # residual, residual_bn_elu, residual_elu, inverted_residual
    model.decoder_cell = "inverted_residual"  # the same choices
    model.squeeze_excitation = True
    model.residual_posterior = True  # parametrise the posterior relative to the prior
    model.num_flows = 0  # pairs of autoregressive flow steps per group, only in the posterior
    # bernoulli, logistic_mixture, gaussian (a density); auto: bernoulli if binarised, else mixture
    model.likelihood = "bernoulli"
    model.num_mixtures = 10  # components of logistic_mixture
    # Groups per loop iteration. 0: all on CPU and GPU if the model has at most 32, otherwise one.
    model.unroll = 0
    model.norm_groups = 1  # parts of a batch with separate batch-norm statistics
    model.remat = "none"  # what is recomputed in the backward pass: none, norm_act, cell or group
    model.dtype = "float32"  # type of activations and convolutions: float32 or bfloat16
    # Implementation of convolutions, batch norm and other operations: portable (plain JAX), cpu
    # (plain JAX for CPUs), native (C++, one CPU device), pallas (one NVIDIA GPU).
    # auto: the last of these that runs on the available devices.
    model.implementation = "auto"
    # Precision of float32 products: default (TF32 on GPUs and bfloat16 on TPUs), high or highest.
    model.precision = "default"

    config.objective = objective = ConfigDict()
    # Number of steps that the fractions below refer to; 0: train.num_steps. --extend sets it to the
    # initial number of steps, so that the KL weight does not decrease again.
    objective.schedule_steps = 0
    objective.kl_constant = 0.0001  # fraction of the steps before the KL weight starts to increase
    objective.kl_anneal = 0.3  # fraction of the steps over which it increases to 1
    objective.kl_min = 0.0001  # initial KL weight
    objective.spectral = 1e-2  # weight of the spectral and batch-norm penalties at the end ...
    objective.spectral_init = 0.0  # ... and at the start, if annealed; 0: not annealed

    config.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = 1e-2
    optimizer.min_learning_rate = 1e-4  # at the end of the cosine schedule
    optimizer.warmup_steps = 100  # linear from 0
    optimizer.weight_decay = 3e-4  # added to the gradients of all parameters
    optimizer.epsilon = 1e-3
    optimizer.gradient_clip = 0.0  # maximum global norm of the gradients; 0: not clipped

    config.train = train = ConfigDict()
    # --extend continues a finished run to a larger number. The learning rate then follows the
    # schedule for the new number, and so increases again; the KL weight does not change
    # (objective.schedule_steps).
    train.num_steps = 1000
    train.batch_size = 32  # on all devices together
    train.accumulation_steps = 1  # micro-batches that a batch is split into, to save memory
    train.ema_decay = 0.0  # decay of the EMA of variables, used in evaluation and sampling; 0: none
    train.max_nonfinite_steps = 5  # stop after this many consecutive skipped updates
    # A run (or published .pt) with the initial variables of a new run: RUN, RUN@best or RUN@STEP;
    # "": none. It is read only at step 0.
    train.init_from = ""
    train.init_optimizer = False  # also take its optimiser's moments; schedules start at step 0
    train.init_differences = "refuse"  # refuse arrays of other shapes; fresh: initialise them

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 100  # on all devices together
    evaluation.every_steps = 0  # evaluate the validation (or test) split in training; 0: never
    evaluation.max_examples = 0  # ... only this many of its images; 0: all
    evaluation.recalibration_passes = 500  # passes of batch-norm recalibration before sampling
    evaluation.recalibration_batch_size = 16

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # number of copies of the parameters; -1: as many as there are devices for
    mesh.fsdp = 1  # devices that one copy of parameters and optimiser state is sharded over

    config.distributed = distributed = ConfigDict()
    distributed.timeout = 100  # seconds without a heartbeat after which a host counts as lost
    distributed.start_timeout = 300  # seconds that hosts wait for all others to join

    config.log = log = ConfigDict()
    log.every_steps = 50  # steps between rows of metrics
    log.images_every_steps = 500  # steps between grids of images; 0: only at the end
    log.num_images = 64  # images per grid

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 500
    checkpoint.keep = 2  # number of newest checkpoints to keep
    checkpoint.keep_best = 1  # number of best ones to keep, by the NELBO of eval.every_steps

    return config.lock()
