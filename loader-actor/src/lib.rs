//! loader-actor
