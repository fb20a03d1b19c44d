"""Every configuration key with its meaning. The other files in this folder change what differs.

The defaults are the paper's where it has one for all its data sets (appendix A).
"""

from ml_collections import ConfigDict

VERSION = 3  # goes up when keys change, or names of values: see nvae_jax/run_directory.py


def get_config():
    """The base configuration: locked, so that a misspelt key is an error."""
    config = ConfigDict()
    config.version = VERSION  # of the keys; not for changing
    config.seed = 0  # of parameters, data order, augmentation and latent noise

    config.data = data = ConfigDict()
    data.name = "digits"  # a source in nvae_jax/data/sources.py
    data.dir = ""  # where its files are; "" is the source's usual place
    data.image_size = 32  # height and width, padding included; 0: from the data
    data.channels = 1  # 0: from the data
    data.padding = 0  # zeros on every side, part of image_size; not counted by the likelihood
    data.max_value = 0  # white of 16 bits; 0: what is stated, else the highest of num_bits or of 16
    data.num_bits = 8  # bits per colour value; above 8 of grey pictures and arrays of 16 bits
    data.binarize = False  # draw each pixel from Bernoulli(value / 255) every time it is read
    data.horizontal_flip = False  # at random, in training
    data.skip_corrupt = False  # count and leave out unreadable examples instead of stopping
    data.workers = 0  # reader processes, at most four a core; 0: threads of the training process

    config.model = model = ConfigDict()
    model.num_scales = 2
    model.num_groups = 10  # latent groups of the finest scale
    model.adaptive_groups = True  # each coarser scale has half the groups of the one below
    model.min_groups = 1  # ... but at least this many
    model.latent_channels = 20  # of every group
    model.encoder_width = 32  # channels at full resolution; they double at every halving
    model.decoder_width = 32
    model.process_blocks = 2  # halvings ahead of the towers, and doublings after them
    model.preprocess_cells = 3  # cells of each such block
    model.postprocess_cells = 3
    model.encoder_cells_per_group = 2
    model.decoder_cells_per_group = 2
    model.encoder_cell = "residual"  # residual, residual_bn_elu, residual_elu, inverted_residual
    model.decoder_cell = "inverted_residual"  # the same choice
    model.squeeze_excitation = True
    model.residual_posterior = True  # posterior relative to the prior
    model.num_flows = 0  # pairs of autoregressive flow steps per group, posterior only
    # bernoulli, logistic_mixture, gaussian (a density); auto: bernoulli if binarised, else mixture
    model.likelihood = "bernoulli"
    model.num_mixtures = 10  # of logistic_mixture
    # Groups per loop iteration. 0: all of them on CPU and GPU if the model has at most 32, or one.
    model.unroll = 0
    model.norm_groups = 1  # parts of a batch with batch-norm statistics of their own
    model.remat = "none"  # computed again in the backward pass: none, norm_act, cell or group
    model.dtype = "float32"  # of activations and convolutions: float32 or bfloat16
    # What convolutions, batch norm and more are computed with: portable (plain JAX), cpu (plain JAX
    # for CPUs), native (C++, one CPU device), pallas (one NVIDIA GPU).
    # auto: the last of these that runs on the devices there are.
    model.implementation = "auto"
    # Of products of float32, for which "default" is TF32 on GPUs and bfloat16 on TPUs: default,
    # high or highest.
    model.precision = "default"

    config.objective = objective = ConfigDict()
    # That the fractions below are of; 0: train.num_steps. A run that --extend makes longer has its
    # first length here, so that the KL weight does not fall again.
    objective.schedule_steps = 0
    objective.kl_constant = 0.0001  # fraction of the steps before the KL weight starts to rise
    objective.kl_anneal = 0.3  # fraction of the steps over which it rises to 1
    objective.kl_min = 0.0001  # where it starts
    objective.spectral = 1e-2  # weight of the spectral and batch-norm penalties at the end ...
    objective.spectral_init = 0.0  # ... and at the start, where annealed; 0: not annealed

    config.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = 1e-2
    optimizer.min_learning_rate = 1e-4  # where the cosine ends
    optimizer.warmup_steps = 100  # linear from 0
    optimizer.weight_decay = 3e-4  # added to the gradient, all parameters
    optimizer.epsilon = 1e-3
    optimizer.gradient_clip = 0.0  # largest norm of all gradients together; 0: not clipped

    config.train = train = ConfigDict()
    # A finished run goes on to more with --extend: from then on the learning rate is that of a run
    # of the new length, and so rises again; the KL weight stays (objective.schedule_steps).
    train.num_steps = 1000
    train.batch_size = 32  # over all devices
    train.accumulation_steps = 1  # micro-batches that a batch is split into, to save memory
    train.ema_decay = 0.0  # of the averaged variables that are evaluated and sampled from; 0: none
    train.max_nonfinite_steps = 5  # so many skipped updates in a row stop the run
    # A run (or published .pt) whose variables a new run starts from, at step 0: RUN, RUN@best or
    # RUN@STEP; "": none. Read at the start, and never again.
    train.init_from = ""
    train.init_optimizer = False  # take along its optimiser's moments; schedules start anew
    train.init_differences = "refuse"  # of arrays of other shapes; fresh: initialise those

    config.eval = evaluation = ConfigDict()
    evaluation.batch_size = 100  # over all devices
    evaluation.every_steps = 0  # of training, on the validation (or test) split; 0: never
    evaluation.max_examples = 0  # ... its first so many images; 0: all
    evaluation.recalibration_passes = 500  # of batch norm, before sampling
    evaluation.recalibration_batch_size = 16

    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # devices with a whole copy of the parameters; -1: all that are left
    mesh.fsdp = 1  # devices that share one copy of parameters and optimiser state

    config.distributed = distributed = ConfigDict()
    distributed.timeout = 100  # seconds without a sign of life after which a host counts as lost
    distributed.start_timeout = 300  # seconds that hosts wait for all to join, and miss none yet

    config.log = log = ConfigDict()
    log.every_steps = 50  # a row of metrics
    log.images_every_steps = 500  # sample and reconstruction grids; 0: only at the end
    log.num_images = 64  # of a grid

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 500
    checkpoint.keep = 2  # the newest
    checkpoint.keep_best = 1  # besides them, by the NELBO of eval.every_steps

    return config.lock()
