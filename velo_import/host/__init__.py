# SPDX-License-Identifier: Apache-2.0
"""Every system call that Velo makes, one wrapper each. Knows the kernel, and nothing of stores."""
