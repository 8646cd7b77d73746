"""Torch's process group on machines that know themselves by a loopback address, as Debian's and Ubuntu's do.

Gloo tells the other workers the address that its own host name has, and only where an interface is named that interface's.
Torch is imported with this module.
"""

import fcntl
import socket
import struct

import ray
import ray.train.torch
import ray.util
from ray.train.torch.config import _TorchBackend

from lepton_ray.core import settings

_ASK_ADDRESS = 0x8915  # SIOCGIFADDR of Linux
_ADDRESS = slice(20, 24)  # in its struct ifreq


class Backend(_TorchBackend):  # type: ignore[misc]  # Ray has no types
    """Ray's own, after each worker has learnt which interface the others reach it by."""

    def on_start(
        self, worker_group: "ray.train.BaseWorkerGroup", backend_config: "ray.train.torch.TorchConfig"
    ) -> None:
        """Join the workers to a group."""
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


class GroupConfig(ray.train.torch.TorchConfig):  # type: ignore[misc]  # Ray has no types
    """Ray's own, with our backend."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What starts the group."""
        return Backend


def name_interface() -> None:
    """Tell Gloo the interface that has the address by which Ray knows this machine, unless the user has said one."""
    if (name := interface_of(ray.util.get_node_ip_address())) is not None:
        settings.set_collective_interface(name)


def interface_of(address: str) -> str | None:
    """Return the name of the interface with an IPv4 address, None if none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _ASK_ADDRESS, request)
            except OSError:  # the interface has no address
                continue
            if socket.inet_ntoa(answer[_ADDRESS]) == address:
                return name
    return None
