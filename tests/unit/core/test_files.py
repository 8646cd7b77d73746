import subprocess
import sys
from pathlib import Path


def test_a_temporary_folder_is_there_until_the_process_ends():
    program = (
        "from lepton_ray.core.files import temporary_folder\n"
        "folder = temporary_folder()\n"
        "(folder / 'file').write_text('x')\n"
        "print(folder, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder.is_absolute()
    assert not folder.exists()
