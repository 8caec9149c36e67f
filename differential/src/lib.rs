//! draft
pub mod layout;
pub mod native;
pub mod random;
pub mod state;
pub mod templates;
pub mod values;
pub mod generate;
pub mod sequence;
pub mod soft;
