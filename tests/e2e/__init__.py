# SPDX-License-Identifier: Apache-2.0
"""Stories about users, told with real processes: a plain run, a learning run, a served run, one answer."""
