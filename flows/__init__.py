"""How stages are chained, and the command line."""

import os

# Defaults for the libraries underneath, set before any is imported; the user's own environment wins.
for _name, _value in {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 is too little for two first starts at once
    "PREFECT_LOGGING_LEVEL": "WARNING",  # stages are told of once, by ourselves
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",  # a tokenizer used before a child process is started warns otherwise
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads make a step many times slower when cores are shared
}.items():
    os.environ.setdefault(_name, _value)
