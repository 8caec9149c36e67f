//! The software processor against the real one.
pub mod campaign;
pub mod compare;
pub mod generate;
pub mod layout;
pub mod native;
pub mod random;
pub mod report;
pub mod sequence;
pub mod shrink;
pub mod soft;
pub mod state;
pub mod templates;
pub mod values;
