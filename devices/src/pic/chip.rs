//! One 8259A: eight lines, who is next, and its words.

const FIRST_WORD: u8 = 1 << 4;
const THIRD_OPERATION: u8 = 1 << 3;
/// In the first initialisation word: a fourth one will follow,
const NEEDS_FOURTH: u8 = 1 << 0;
/// and no third one, because there is no other controller.
const IS_SINGLE: u8 = 1 << 1;
/// In the fourth initialisation word.
const AUTOMATIC_END: u8 = 1 << 1;
const SPECIAL_NESTING: u8 = 1 << 4;
/// In the third operation word.
const POLL: u8 = 1 << 2;
/// What a poll reads when somebody asks; the line is in the low bits.
const POLLED: u8 = 1 << 7;

/// What the next byte to the data port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expecting {
    Mask,
    SecondWord,
    ThirdWord,
    FourthWord,
}

/// One controller.
#[derive(Debug)]
pub(super) struct Chip {
    /// Which lines are up.
    lines: u8,
    requested: u8,
    in_service: u8,
    mask: u8,
    /// Which lines are level-triggered, and which may be.
    levels: u8,
    may_be_level: u8,
    cascade: Option<u8>,
    /// The line with the lowest priority; the next one has the highest, and so on round.
    lowest: u8,
    first_vector: u8,
    expecting: Expecting,
    is_initialised: bool,
    needs_fourth: bool,
    is_single: bool,
    ends_automatically: bool,
    rotates_automatically: bool,
    has_special_nesting: bool,
    has_special_mask: bool,
    shows_in_service: bool,
    is_polled: bool,
}

impl Chip {
    /// `cascade` is the line that another controller's request is wired to, if one is.
    pub(super) fn new(may_be_level: u8, cascade: Option<u8>) -> Self {
        Self {
            lines: 0,
            requested: 0,
            in_service: 0,
            mask: 0,
            levels: 0,
            may_be_level,
            cascade,
            lowest: 7,
            first_vector: 0,
            expecting: Expecting::Mask,
            is_initialised: false,
            needs_fourth: false,
            is_single: false,
            ends_automatically: false,
            rotates_automatically: false,
            has_special_nesting: false,
            has_special_mask: false,
            shows_in_service: false,
            is_polled: false,
        }
    }

    /// The vector of line 0 to 7.
    pub(super) fn vector(&self, line: u8) -> u8 {
        self.first_vector | line & 7
    }

    pub(super) fn set_line(&mut self, line: u8, is_asserted: bool) {
        let bit = 1 << line;
        let rises = is_asserted && self.lines & bit == 0;
        self.lines = if is_asserted { self.lines | bit } else { self.lines & !bit };
        if self.levels & bit != 0 {
            self.follow_line(line, is_asserted);
        } else if rises {
            self.requested |= bit;
        }
    }

    /// The request of `line` is as given, whatever it was.
    pub(super) fn follow_line(&mut self, line: u8, is_asserted: bool) {
        let bit = 1 << line;
        self.requested = if is_asserted { self.requested | bit } else { self.requested & !bit };
    }

    pub(super) fn pulse_line(&mut self, line: u8) {
        self.requested |= 1 << line;
    }

    pub(super) fn levels(&self) -> u8 {
        self.levels
    }

    pub(super) fn set_levels(&mut self, levels: u8) {
        self.levels = levels & self.may_be_level;
        self.requested |= self.levels & self.lines;
    }

    /// How far `line` is from the highest priority.
    fn rank(&self, line: u8) -> u8 {
        line.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    fn highest(&self, lines: u8) -> Option<u8> {
        (1..=8).map(|step| self.lowest.wrapping_add(step) & 7).find(|line| lines >> line & 1 != 0)
    }

    /// The line to be served next, if one may interrupt what is in service ("fully nested
    /// mode" and its two relaxations).
    pub(super) fn next(&self) -> Option<u8> {
        if !self.is_initialised || self.expecting != Expecting::Mask {
            return None;
        }
        let line = self.highest(self.requested & !self.mask)?;
        let mut holds_back = self.in_service;
        if self.has_special_mask {
            holds_back &= !self.mask;
        }
        let Some(served) = self.highest(holds_back) else {
            return Some(line);
        };
        // The second controller knows what may interrupt its own lines.
        let is_nested = self.has_special_nesting && self.cascade == Some(line) && served == line;
        (self.rank(line) < self.rank(served) || is_nested).then_some(line)
    }

    pub(super) fn acknowledge(&mut self, line: u8) {
        let bit = 1 << line;
        if self.levels & self.lines & bit == 0 {
            self.requested &= !bit;
        }
        if !self.ends_automatically {
            self.in_service |= bit;
        } else if self.rotates_automatically {
            self.lowest = line;
        }
    }

    /// "Poll command": the next read, of whichever port, acknowledges.
    fn poll(&mut self) -> Option<u8> {
        if !std::mem::take(&mut self.is_polled) {
            return None;
        }
        let line = self.next();
        if let Some(line) = line {
            self.acknowledge(line);
        }
        Some(line.map_or(0, |line| POLLED | line))
    }

    pub(super) fn read_command(&mut self) -> u8 {
        let shown = if self.shows_in_service { self.in_service } else { self.requested };
        self.poll().unwrap_or(shown)
    }

    pub(super) fn read_data(&mut self) -> u8 {
        self.poll().unwrap_or(self.mask)
    }

    pub(super) fn write_command(&mut self, value: u8) {
        if value & FIRST_WORD != 0 {
            self.initialise(value);
        } else if value & THIRD_OPERATION != 0 {
            self.set_modes(value);
        } else {
            self.operate(value >> 5, value & 7);
        }
    }

    pub(super) fn write_data(&mut self, value: u8) {
        let after_third = if self.needs_fourth { Expecting::FourthWord } else { Expecting::Mask };
        self.expecting = match self.expecting {
            Expecting::Mask => {
                self.mask = value;
                return;
            }
            Expecting::SecondWord => {
                self.first_vector = value & 0xf8;
                if self.is_single { after_third } else { Expecting::ThirdWord }
            }
            Expecting::ThirdWord => after_third,
            Expecting::FourthWord => {
                self.ends_automatically = value & AUTOMATIC_END != 0;
                self.has_special_nesting = value & SPECIAL_NESTING != 0;
                Expecting::Mask
            }
        };
        self.is_initialised = self.expecting == Expecting::Mask;
    }

    /// The first initialisation word: modes, masks and edges seen are forgotten.
    fn initialise(&mut self, word: u8) {
        *self = Self {
            lines: self.lines,
            levels: self.levels,
            requested: self.levels & self.lines,
            expecting: Expecting::SecondWord,
            needs_fourth: word & NEEDS_FOURTH != 0,
            is_single: word & IS_SINGLE != 0,
            first_vector: self.first_vector,
            ..Self::new(self.may_be_level, self.cascade)
        };
    }

    /// The second operation word: ends and rotations.
    fn operate(&mut self, operation: u8, line: u8) {
        let masked = if self.has_special_mask { self.mask } else { 0 };
        let highest_served = self.highest(self.in_service & !masked);
        let (ended, lowest) = match operation {
            0 | 4 => {
                self.rotates_automatically = operation == 4;
                (None, None)
            }
            1 => (highest_served, None),
            3 => (Some(line), None),
            5 => (highest_served, highest_served),
            6 => (None, Some(line)),
            7 => (Some(line), Some(line)),
            _ => (None, None),
        };
        if let Some(line) = ended {
            self.in_service &= !(1 << line);
        }
        self.lowest = lowest.unwrap_or(self.lowest);
    }

    /// The third operation word: special mask, poll, and what the command port shows.
    fn set_modes(&mut self, word: u8) {
        match word >> 5 & 3 {
            2 => self.has_special_mask = false,
            3 => self.has_special_mask = true,
            _ => {}
        }
        self.is_polled = word & POLL != 0;
        match word & 3 {
            2 => self.shows_in_service = false,
            3 => self.shows_in_service = true,
            _ => {}
        }
    }
}
