//! vcpu-actor
