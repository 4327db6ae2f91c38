import Foundation
import Testing

@testable import ModditCore

/// The golden files, which `make golden` writes.
enum Golden {
    static func data(_ name: String) throws -> Data {
        let folder = try #require(Bundle.module.url(forResource: "Golden", withExtension: nil))
        return try Data(contentsOf: folder.appendingPathComponent(name))
    }

    static func read(_ name: String) throws -> JSONField {
        JSONField(try JSON.parse(data(name), place: name, component: "test"), place: name, component: "test")
    }

    /// The items of a list in a golden file.
    static func items(_ name: String, _ field: String) throws -> [JSONField] {
        try read(name)[field].array()
    }
}

extension JSONField {
    subscript(name: String) -> JSONField {
        get throws { try #require(try object()[ExactText(name)]) }
    }

    var integers: [Int] {
        get throws { try array().map { try $0.integer() } }
    }

    var numbers: [Double] {
        get throws { try array().map { try $0.number() } }
    }

    var floats: [Float] {
        get throws { try numbers.map { Float($0) } }
    }
}

/// Largest difference between two lists of the same length.
func difference(_ a: [Float], _ b: [Float]) -> Float {
    guard a.count == b.count else { return .infinity }
    return zip(a, b).map { abs($0 - $1) }.max() ?? 0
}
