//! pmap-actor
