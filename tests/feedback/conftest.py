"""Settings of the property tests here."""

import hypothesis

hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")
