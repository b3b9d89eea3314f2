# SPDX-License-Identifier: Apache-2.0
"""What the user wants: variables, files and flags become one frozen `Settings`. Knows names and origins;
does nothing.
"""
