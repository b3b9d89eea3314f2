# SPDX-License-Identifier: Apache-2.0
"""What the user stories stand on: interpreters, trees, plain and accelerated runs. No assertions about Velo
itself.
"""

import pytest

pytest.register_assert_rewrite("tests.support.running")
