import Foundation

extension JSON {
    /// Reads a JSON file.
    ///
    /// - Parameters:
    ///   - data: its bytes, UTF-8.
    ///   - place: its name, for messages.
    ///   - component: part of the program that reads it, for messages.
    ///   - most: bytes that it may have.
    /// - Throws: `ModditError.format` for too many bytes, or with the position of the first fault.
    static func parse(
        _ data: Data, place: String, component: String, most: Int = Bounds.jsonBytes
    ) throws(ModditError) -> JSON {
        guard data.count <= most else {
            throw .format(
                "[\(component)] \(place): has \(data.count) bytes, want at most \(most); convert the checkpoint again")
        }
        var parser = JSONParser(bytes: [UInt8](data))
        do throws(JSONParser.Fault) {
            return try parser.document()
        } catch {
            throw .format(
                "[\(component)] \(place): not JSON (\(error.problem) at byte \(error.position) of \(data.count)); "
                    + "the file is damaged, convert the checkpoint again")
        }
    }
}

/// One pass over the bytes of a file.
private struct JSONParser {
    struct Fault: Error {
        let problem: String
        let position: Int
    }

    let bytes: [UInt8]
    var position = 0
    var depth = 0

    init(bytes: [UInt8]) {
        self.bytes = bytes
    }

    mutating func document() throws(Fault) -> JSON {
        let value = try value()
        skipSpace()
        guard position == bytes.count else { throw fault("something follows the value") }
        return value
    }

    private func fault(_ problem: String) -> Fault {
        Fault(problem: problem, position: position)
    }

    private var next: UInt8? {
        position < bytes.count ? bytes[position] : nil
    }

    private mutating func skipSpace() {
        while let byte = next, [0x20, 0x0A, 0x0D, 0x09].contains(byte) { position += 1 }
    }

    /// Steps over one character, if it is there.
    private mutating func take(_ character: Unicode.Scalar) -> Bool {
        guard let byte = next, UInt32(byte) == character.value else { return false }
        position += 1
        return true
    }

    private mutating func value() throws(Fault) -> JSON {
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return try nested { parser throws(Fault) in .object(try parser.fields()) }
        case UInt8(ascii: "["): return try nested { parser throws(Fault) in .array(try parser.items()) }
        case UInt8(ascii: "\""): return .string(try text())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        case .none: throw fault("it ends too early")
        default: return try number()
        }
    }

    /// Makes the fault for something that is no value, such as NaN.
    private func noValue(from start: Int) -> Fault {
        let word = bytes[start...].prefix { $0 == UInt8(ascii: "-") || Unicode.Scalar($0).properties.isAlphabetic }
        let name = String(decoding: word, as: UTF8.self)
        return Fault(problem: name.isEmpty ? "no value" : "\(name.quoted) is no value of JSON", position: start)
    }

    private mutating func nested(_ read: (inout JSONParser) throws(Fault) -> JSON) throws(Fault) -> JSON {
        guard depth < Bounds.jsonDepth else { throw fault("nested more than \(Bounds.jsonDepth) deep") }
        depth += 1
        position += 1
        let value = try read(&self)
        depth -= 1
        return value
    }

    private mutating func items() throws(Fault) -> [JSON] {
        var items: [JSON] = []
        skipSpace()
        if take("]") { return items }
        while true {
            items.append(try value())
            skipSpace()
            if take("]") { return items }
            guard take(",") else { throw fault("a list lacks , or ]") }
        }
    }

    private mutating func fields() throws(Fault) -> [ExactText: JSON] {
        var fields: [ExactText: JSON] = [:]
        skipSpace()
        if take("}") { return fields }
        while true {
            skipSpace()
            guard next == UInt8(ascii: "\"") else { throw fault("an object lacks the name of a field") }
            let name = ExactText(try text())
            skipSpace()
            guard take(":") else { throw fault("an object lacks :") }
            let item = try value()
            guard fields.updateValue(item, forKey: name) == nil else {
                throw fault("key \(name.text.quoted) is there twice")
            }
            skipSpace()
            if take("}") { return fields }
            guard take(",") else { throw fault("an object lacks , or }") }
        }
    }

    private mutating func word(_ word: StaticString, _ value: JSON) throws(Fault) -> JSON {
        let start = position
        for character in String(describing: word).unicodeScalars {
            guard take(character) else { throw noValue(from: start) }
        }
        return value
    }
}

// MARK: - Numbers

extension JSONParser {
    private mutating func number() throws(Fault) -> JSON {
        let start = position
        _ = take("-")
        guard let first = next, isDigit(first) else { throw noValue(from: start) }
        let digits = skipDigits()
        guard digits == 1 || first != UInt8(ascii: "0") else { throw fault("a number begins with 0") }
        var isWhole = true
        if take(".") {
            isWhole = false
            guard skipDigits() > 0 else { throw fault("a number ends with a point") }
        }
        if take("e") || take("E") {
            isWhole = false
            _ = take("+") || take("-")
            guard skipDigits() > 0 else { throw fault("a number lacks its exponent") }
        }
        let literal = String(decoding: bytes[start..<position], as: UTF8.self)
        if isWhole, let number = Int(literal) { return .integer(number) }
        if isWhole, let number = UInt64(literal) { return .unsigned(number) }
        guard let number = Double(literal), number.isFinite else {
            throw fault("\(literal.quoted) is too large a number")
        }
        return .number(number)
    }

    private func isDigit(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
    }

    private mutating func skipDigits() -> Int {
        let start = position
        while let byte = next, isDigit(byte) { position += 1 }
        return position - start
    }
}

// MARK: - Texts

extension JSONParser {
    private mutating func text() throws(Fault) -> String {
        position += 1
        var result = try plainText()
        while !take("\"") {
            guard take("\\") else { throw fault("a text has no end, or a control character in it") }
            result.unicodeScalars.append(try escape())
            result += try plainText()
        }
        return result
    }

    /// Reads up to the next quote, escape or control character.
    private mutating func plainText() throws(Fault) -> String {
        let start = position
        while let byte = next, byte != UInt8(ascii: "\""), byte != UInt8(ascii: "\\"), byte >= 0x20 { position += 1 }
        guard let text = String(validating: bytes[start..<position], as: UTF8.self) else {
            throw Fault(problem: "a text is not UTF-8", position: start)
        }
        return text
    }

    private mutating func escape() throws(Fault) -> Unicode.Scalar {
        let escapes: [(Unicode.Scalar, Unicode.Scalar)] = [
            ("\"", "\""), ("\\", "\\"), ("/", "/"), ("b", "\u{8}"), ("f", "\u{C}"), ("n", "\n"), ("r", "\r"),
            ("t", "\t"),
        ]
        for (letter, meaning) in escapes where take(letter) { return meaning }
        guard take("u") else { throw fault("an unknown escape in a text") }
        let unit = try codeUnit()
        if let scalar = Unicode.Scalar(unit) { return scalar }
        guard take("\\"), take("u") else { throw fault("surrogates without their other half in a text") }
        let low = try codeUnit()
        guard unit < 0xDC00, (0xDC00...0xDFFF).contains(low),
            let scalar = Unicode.Scalar(0x10000 + (UInt32(unit) - 0xD800) << 10 + (UInt32(low) - 0xDC00))
        else { throw fault("surrogates without their other half in a text") }
        return scalar
    }

    private mutating func codeUnit() throws(Fault) -> UInt16 {
        guard position + 4 <= bytes.count,
            let unit = UInt16(String(decoding: bytes[position..<position + 4], as: UTF8.self), radix: 16),
            bytes[position] != UInt8(ascii: "+")
        else { throw fault("an escape in a text is not four digits") }
        position += 4
        return unit
    }
}
