# SPDX-License-Identifier: Apache-2.0
"Kernels of this very Python, whatever Jupyter's search path, configuration and users' kernels say."

import logging
import warnings
from pathlib import Path

from cop_repro.core import needs_extra

KERNEL_CONFIG = """c.Application.log_level = 'ERROR'
c.InteractiveShellApp.exec_lines = ['__import__("torch") and None']
"""


def kernel_manager():
    "A manager, not yet started, whose kernel runs under this Python."
    with needs_extra("pipeline"):
        from ipykernel.kernelspec import RESOURCES, get_kernel_dict
        from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager

    class OwnSpecs(KernelSpecManager):
        "Knows one kernel."

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            "The kernel of this Python, under every name; started here, not by a provisioner."
            spec = KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())
            spec.metadata = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
            return spec

    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=OwnSpecs())


def write_kernel_profile(root: Path) -> Path:
    "The kernel's own IPython folder: a notebook must not depend on a user's start-up files."
    folder = root / "work" / "ipython"
    config = folder / "profile_default" / "ipython_kernel_config.py"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(KERNEL_CONFIG, "utf-8")
    return folder


def quiet_libraries() -> None:
    "Notebooks print their progress, not remarks of the libraries that execute them."
    warnings.simplefilter("ignore")
    for name in ("papermill", "traitlets"):  # what ended a notebook is said by its command
        logging.getLogger(name).setLevel(logging.CRITICAL)
