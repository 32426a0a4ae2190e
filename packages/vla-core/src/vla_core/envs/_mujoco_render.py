"""Off-screen MuJoCo images, metric depth and camera geometry, with the fast flags.

Recording and rollout must render alike: no shadows, no reflections, no multisampling (about six times faster
in software GL), but for a benchmark whose published data have them.
Shapes: H, W pixels. Pixel centres are at half-integers: the upper left one is at (0.5, 0.5).
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_core.errors import UserError

GL_PACKAGES = "libegl1 libgl1 libopengl0 libosmesa6"

# MuJoCo picks its GL when it is first imported; if somebody imported it before us without a choice,
# it picked one that needs a display.
_picked_for_display = "mujoco" in sys.modules and "MUJOCO_GL" not in os.environ
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")


def _gl_error(error: BaseException) -> UserError:
    backend = os.environ.get("MUJOCO_GL")
    return UserError(
        f"off-screen rendering (MUJOCO_GL={backend}) does not work here ({' '.join(str(error).split())}); "
        f"install {GL_PACKAGES} (apt-get install -y {GL_PACKAGES}) or set MUJOCO_GL=osmesa"
    )


try:
    import mujoco
    import mujoco.gl_context

    if _picked_for_display:
        importlib.reload(mujoco.gl_context)
except ModuleNotFoundError:
    raise
except (ImportError, AttributeError, OSError, RuntimeError) as error:  # a GL library is missing
    raise _gl_error(error) from error

_alive: weakref.WeakSet[Any] = weakref.WeakSet()


def _free() -> None:
    """Free the contexts nobody closed, before MuJoCo's exit hook takes EGL apart."""
    for renderer in list(_alive):
        renderer.close()


class CameraRenderer:
    """Renders named cameras of one model as square images.

    Args:
        model: the MuJoCo model; its multisampling is switched off unless ``full``.
        size: H = W in pixels.
        upside_down: cameras mounted upside down; their images are rotated by 180 degrees.
        markers: draw sites (goal markers).
        full: with shadows, reflections and the model's multisampling.
        hidden: groups of geoms that are not drawn.

    Raises:
        UserError: GL is missing on this machine.
    """

    def __init__(
        self,
        model: Any,
        size: int,
        upside_down: frozenset[str],
        markers: bool,
        full: bool = False,
        hidden: tuple[int, ...] = (),
    ) -> None:
        self._model, self._size, self._upside_down = model, size, upside_down
        if not full:
            model.vis.quality.offsamples = 0
        # No larger than the image: the whole buffer is cleared and resolved for every image.
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._options = mujoco.MjvOption()
        if not markers:
            self._options.sitegroup[:] = 0
        for group in hidden:
            self._options.geomgroup[group] = 0
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except (ImportError, AttributeError, OSError, RuntimeError, mujoco.FatalError) as error:
            raise _gl_error(error) from error
        if not full:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = 0
        _alive.add(self._renderer)
        # MuJoCo registers its exit hook with the first context; ours must be younger to run before it.
        atexit.unregister(_free)
        atexit.register(_free)

    def _render(self, data: Any, camera: str) -> NDArray[Any]:
        self._renderer.update_scene(data, camera=camera, scene_option=self._options)
        pixels = self._renderer.render()
        if camera in self._upside_down:
            pixels = pixels[::-1, ::-1]
        return np.ascontiguousarray(pixels)

    def image(self, data: Any, camera: str) -> NDArray[np.uint8]:
        """RGB ``[H, W, 3]``."""
        return self._render(data, camera)

    def depth(self, data: Any, camera: str) -> NDArray[np.float32]:
        """Metres along the optical axis ``[H, W]``."""
        self._renderer.enable_depth_rendering()
        try:
            return self._render(data, camera).astype(np.float32)
        finally:
            self._renderer.disable_depth_rendering()

    def intrinsics(self, camera: str) -> NDArray[np.float32]:
        """Pinhole matrix ``[3, 3]`` in pixels of the (rotated) image."""
        fovy = np.deg2rad(float(self._model.camera(camera).fovy[0]))
        focal = 0.5 * self._size / np.tan(0.5 * fovy)
        centre = 0.5 * self._size
        return np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]], np.float32)

    def extrinsics(self, data: Any, camera: str) -> NDArray[np.float32]:
        """Camera-to-world pose ``[4, 4]`` of the (rotated) image; x right, y down, z forward, metres."""
        view = data.camera(camera)
        # MuJoCo looks along -z with y up; half a turn of the image turns x and y once more.
        turn = 1.0 if camera in self._upside_down else -1.0
        pose = np.eye(4)
        pose[:3, :3] = view.xmat.reshape(3, 3) @ np.diag([-turn, turn, -1.0])
        pose[:3, 3] = view.xpos
        return pose.astype(np.float32)

    def close(self) -> None:
        """Free the GL context."""
        _alive.discard(self._renderer)
        self._renderer.close()
