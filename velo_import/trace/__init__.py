# SPDX-License-Identifier: Apache-2.0
"""What a traced start took, module by module: read from the hook's notes, and shown in several forms."""
