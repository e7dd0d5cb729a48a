"""STEPH with the settings of the paper, for any dataset.

    python -m steph_jax.train --config configs/default.py --config.dataset=NAME --workdir runs/NAME

Five folds of STEPH take 8 minutes on one CPU core for 345 patients of 76 patches (tcga_kirc of
docs/results.md, C-index 0.63), and time grows with the number of patches (docs/performance.md).

Every field can be overridden on the command line (`--config.epochs=5`,
`--config.sources="('tcga_blca','tcga_brca')"`); a misspelt one is refused.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    # --- what is fitted ---
    config.dataset = "tcga_brca"  # the target: a folder of data.root
    config.method = "steph"  # see steph_jax/methods/registry.py
    config.folds = (0, 1, 2, 3, 4)  # each is trained and tested; they share one load of the data
    config.seed = 42  # of initial parameters, batches and dropout
    # Training patients of each fold, drawn by the seed, events spread evenly; 0 = all. The target's
    # model of the pool is fitted again on them.
    config.train_patients = 0
    config.sources = ()  # datasets whose fold-0 models are merged; () = all others of the pool

    # --- training protocol ---
    config.epochs = 20
    config.batch_size = 16  # patients a step
    config.learning_rate = 1e-4  # peak; warmed up linearly, then half a cosine to 0
    config.warmup_epochs = 1
    config.weight_decay = 1e-5  # on tensors of two or more dimensions
    # Epochs between evaluations on the test patients; 0: only the final model is evaluated on them.
    # Whoever watches them while training chooses by them in the end.
    config.eval_every = 0
    # What is taken away from a method that merges other cancers: none; permuted (their task vectors
    # in random order), no_sources (left out), longer (the own model, trained on for as long).
    config.control = "none"
    # Trackers beside history.csv: tensorboard, wandb, mlflow, as ("tensorboard", "mlflow").
    config.track = ()
    config.compute_dtype = "float32"  # or bfloat16: operands of products over patches

    # --- data ---
    config.data = ConfigDict()
    config.data.root = "data"  # {root}/{dataset}/{dataset}_survival.csv and splits_{fold}.csv
    config.data.features = "data/features/{dataset}"  # folder, .lmdb, store; "A,B": several
    config.data.hdf5_dataset = "features"  # name of the array in HDF5 and .npz files
    config.data.cache_gb = 0.0  # features in memory, 10^9 bytes; 0 = a quarter of the job's
    config.data.device_gb = -1.0  # features kept on each GPU if all fit; -1 = half of it, 0 = none
    config.data.check_values = True  # read values that do not fit the cache once before training
    config.data.time_unit = "days"  # of the table: days, months or years
    config.data.event_coding = "event"  # "event": 1 = death seen; "censorship": 1 = censored
    config.data.unlabeled = "refuse"  # patients without time or event; "drop" leaves them out
    config.data.columns = ConfigDict()  # names of the table's columns
    config.data.columns.patient = "patient_id"
    config.data.columns.slide = "pathology_id"
    config.data.columns.time = "t"
    config.data.columns.event = "e"
    config.data.columns.competing = ""  # 1 = died of something else; reports give its incidence

    # --- time bins ---
    config.bins = ConfigDict()
    config.bins.kind = "uniform"  # uniform, quantile (of training events) or sqrt_events
    config.bins.number = 32  # not used by sqrt_events
    config.bins.width_days = 365.0  # uniform only

    # --- numbers of the test patients (metrics.json, summary.json, report) ---
    config.evaluate = ConfigDict()
    config.evaluate.years = (1.0, 3.0, 5.0)  # horizons of AUC, Brier scores, calibration

    # --- the pool of models ---
    config.pool = ConfigDict()
    config.pool.root = "pool"  # {root}/null, {root}/{dataset}-fold_{fold}
    config.pool.save = False  # method "abmil": add the fitted models to the pool

    # --- the base model, where the pool has no null model to take it from ---
    config.model = ConfigDict()
    config.model.feature_dim = 1536
    config.model.embed_dim = 512
    config.model.attention_dim = 384
    config.model.pooling = "gated"  # gated or plain attention, mean, max
    config.model.num_layers = 1  # of the feature projection
    config.model.dropout = 0.25

    # --- STEPH (steph_jax/models/steph.py, Options) ---
    config.steph = ConfigDict()
    config.steph.top_k = 5  # sources kept; 0 = all
    config.steph.weight_output = "relu"  # relu, softplus, sigmoid
    config.steph.clamp = False  # weights to [0, 1]
    config.steph.mixing = "nn"  # nn, fnn, param, fix
    config.steph.mixing_output = "relu"  # relu (published); softplus: lambda is never exactly 1
    config.steph.fixed_mixing = ()  # lambda per source, for mixing = "fix"
    config.steph.base = "null"  # null, target
    config.steph.include_target = False  # the target as one of the sources
    config.steph.merged = "mil_encoder"  # mil_encoder, pred_head, all
    config.steph.retrained = "pred_head"  # pred_head, none
    config.steph.head_init = "new"  # new, target
    config.steph.initial_weight = 0.0  # 0.3, say, keeps weights from collapsing to 0

    # --- merging methods: fix, average, learned, dynamic, ties, iso_c, iso_cts ---
    config.merging = ConfigDict()
    config.merging.prepare = "none"  # none, ties, iso_c, iso_cts; in steph and steph_target too
    config.merging.include_target = True  # the target as one of the sources, but not in STEPH
    config.merging.weights = ()  # fix: one per source, the target last; () = 0.3 each

    # --- zero_shot and fine_tune ---
    config.transfer = ConfigDict()
    config.transfer.source = ""  # "" = the best on the fold's training patients

    # --- ROUPKT (steph_jax/models/roupkt.py, Options) ---
    config.roupkt = ConfigDict()
    config.roupkt.top_k = 5  # experts applied; 0 = all
    config.roupkt.expert = "relu"  # relu, identity
    config.roupkt.include_target = True  # the target's model as one of the sources
    config.roupkt.balance_weight = 0.01
    config.roupkt.z_weight = 0.01

    # --- ridge_cox, linear_pool, clinical_cox (steph_jax/methods); inner folds choose ---
    config.linear = ConfigDict()
    config.linear.penalties = (0.1, 0.3, 1.0, 3.0, 10.0)  # of coefficients, per feature
    config.linear.inner_repeats = 1  # draws of the inner folds; choices rest on all of them
    config.linear_pool = ConfigDict()
    config.linear_pool.common = (100.0, 10.0, 1.0)  # penalties of the sources' mean direction
    config.linear_pool.own = (30.0,)  # and of each source's; not to use them is always a choice

    config.clinical_cox = ConfigDict()
    config.clinical_cox.columns = ()  # of the survival table, as ('age', 'stage')

    # --- rescaled and mean_pool (steph_jax/methods); inner folds choose ---
    config.rescaled = ConfigDict()
    config.rescaled.factors = (1.4, 2.0, 3.0, 4.0)  # c of the target's own task vector, besides 1
    config.rescaled.spreads = (0.05, 0.2)  # how far c_s of the sources may go; 0 is always a choice
    config.mean_pool = ConfigDict()
    config.mean_pool.learning_rates = (1e-4, 3e-4, 1e-3)

    # --- early stopping, where splits have a part `validation` ---
    config.validation = ConfigDict()
    config.validation.select = "none"  # the best epoch by "loss" or "c_index", or none: the last
    config.validation.patience = 20  # epochs without a better one before training ends

    # --- loss ---
    config.loss = ConfigDict()
    config.loss.terms = (("nll", 1.0),)  # names in survival/objectives.py, weights
    config.loss.alpha = 0.5  # weight of the uncensored term alone; 0 = plain likelihood
    config.loss.scale = 10.0  # of the earth-mover loss
    config.loss.merge_weight = 0.005  # 0.05 for some cancers of the paper
    config.loss.mix_weight = 0.05
    return config
